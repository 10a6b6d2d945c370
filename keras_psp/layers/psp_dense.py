"""The superposed dense layer."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_psp.layers._superposed_dense import SuperposedDense
from keras_psp.layers._task_units import TaskUnits


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPDense(TaskUnits, SuperposedDense, keras.layers.Dense):
    """A `keras.layers.Dense` that holds many kernels in one, one for each task.

    ```
    y = activation((x C_k) W + b)
    ```

    so that task k sees the kernel `C_k W`. Everything else is Dense's: regularizers,
    constraints, dtype policies, LoRA, quantization, saving.

    Args:
        units: Positive integer, dimensionality of the output space.
        num_tasks: Positive integer, the number of tasks. May be left out where
            `context` knows it.
        context: Name of a context family, `keras_psp.contexts.Context`, or its
            serialized form. Defaults to `"binary"`. `None`: there is no superposed
            kernel, only `base`, `core` and `rank`, and `num_tasks` must be given.
        base: Boolean, whether there is a kernel `W_0` beside that every task sees as
            it is, so that task k sees `W_0 + C_k W`. It is the attribute
            `base_kernel`, zeros at first, and is not trained.
        bias_per_task: Boolean, whether each task has a bias of its own. Train it with
            `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also moves
            the biases of tasks without an example in the batch.
        rank: Integer, the rank of a part `A_k B_k` that each task has of its own, so
            that task k sees `C_k W + A_k B_k`. Or `"full"`, for a whole kernel of its
            own. Or `None`. `B_k` starts as zero: a new layer answers as it would
            without it.
        core: Integer, or a pair `(R_in, R_out)`: the size of a core that each task has
            of its own, between two factors that all tasks share, so that task k sees
            `C_k W + A core_k V^T`. Or `None`. Cores start as zeros.
        bits: Integer in [1, 8]: the base, the core and the low rank are stored in so
            many bits for each number, with scales, and are not trained. Or a dictionary
            of integers for some of `"base"`, `"core"` and `"rank"`. Or `None`.
        units_per_task: List of a positive integer for each task: it has the first so
            many outputs, and the others are `-inf` before the activation. Or `None`.
        **kwargs: `keras.layers.Dense` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example. A float index is a `TypeError`.
            Or soft contexts: a float tensor of shape `(batch, num_tasks)`, a weight
            for each task.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`. Examples whose index lies outside `[0, num_tasks)`
        raise a `ValueError` where the index can be read and are NaN in a compiled or
        exported graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPDense(2, num_tasks=10)
    >>> x = keras.ops.ones((3, 4))
    >>> tuple(layer(x, [0, 7, 7]).shape)
    (3, 2)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3.
        `rank`: [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """

    def __init__(
        self,
        units: int,
        num_tasks: int | None = None,
        context: Any = "binary",
        base: bool = False,
        bias_per_task: bool = False,
        rank: int | str | None = None,
        core: Any = None,
        bits: Any = None,
        units_per_task: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        self.set_context(context, num_tasks)
        self.set_parts(base, bias_per_task, rank, core, bits)
        self.set_units_per_task(units_per_task)

    def build(self, input_shape: Any) -> None:
        self.build_context(input_shape[-1])
        super().build(input_shape)
        self.build_parts((self.units,))

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)
