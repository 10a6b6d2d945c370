"""The superposed layer of any product of inputs and a kernel."""

import math
import re
import string
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import reshape
from keras_psp._core.backend import transpose
from keras_psp.layers._superposed_dense import SuperposedDense


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPEinsumDense(SuperposedDense, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` that holds many kernels in one, one for each task.

    ```
    y = activation(einsum(equation, x C_k, W) + b)
    ```

    The context acts on the dimensions that the product sums over, all together: M is
    the product of their sizes. Everything else is EinsumDense's. The projections of
    attention are such layers.

    Args:
        equation: The product, as `keras.layers.EinsumDense` takes it. The first
            dimension of inputs and outputs is the batch.
        output_shape: Integer or tuple, the outputs' shape but for the batch.
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
            without it. Inputs and outputs may then share no dimension of the kernel.
        core: Integer, or a pair `(R_in, R_out)`: the size of a core that each task has
            of its own, between two factors that all tasks share, so that task k sees
            `C_k W + A core_k V^T`. Or `None`. Cores start as zeros. Needs what `rank`
            needs.
        bits: Integer in [1, 8]: the base, the core and the low rank are stored in so
            many bits for each number, with scales, and are not trained. Or a dictionary
            of integers for some of `"base"`, `"core"` and `"rank"`. Or `None`.
        **kwargs: `keras.layers.EinsumDense` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example. A float index is a `TypeError`.
            Or soft contexts: a float tensor of shape `(batch, num_tasks)`, a weight
            for each task.

    Input shape:
        As the equation says.

    Output shape:
        As the equation says. Examples whose index lies outside `[0, num_tasks)` raise
        a `ValueError` where the index can be read and are NaN in a compiled or
        exported graph.

    Raises:
        ValueError: The equation sums over no dimension, or over the batch.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPEinsumDense(
    ...     "btd,dhe->bthe", (None, 2, 3), num_tasks=10, bias_axes="he"
    ... )
    >>> tuple(layer(keras.ops.ones((4, 5, 6)), [0, 7, 7, 1]).shape)
    (4, 5, 2, 3)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3.
        `rank`: [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """

    bias_axes: Any
    use_bias: bool

    def __init__(
        self,
        equation: str,
        output_shape: Any,
        num_tasks: int | None = None,
        context: Any = "binary",
        base: bool = False,
        bias_per_task: bool = False,
        rank: int | str | None = None,
        core: Any = None,
        bits: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(equation, output_shape, **kwargs)
        self.set_context(context, num_tasks)
        self.use_bias = self.bias_axes is not None
        self.set_parts(base, bias_per_task, rank, core, bits)

    def build(self, input_shape: Any) -> None:
        inputs, kernel, outputs = _letters(self.equation, len(input_shape))
        summed = [x for x in kernel if x in inputs and x not in outputs]
        if not sums_over_inputs(self.equation, len(input_shape)):
            raise ValueError(
                "The equation must sum over dimensions of the inputs, of which the "
                "first is the batch, here and in the outputs. "
                f"Received: equation={self.equation!r}"
            )
        sizes = [input_shape[inputs.index(x)] for x in summed]
        if None in sizes:
            raise ValueError(
                "The dimensions that are summed over must be known. Received: "
                f"equation={self.equation!r}, input_shape={input_shape}"
            )
        # In all three, what is not summed over, what each has a product of its own
        # for, and what is summed over; in the kernel the other way round.
        own = [x for x in kernel if x in inputs and x in outputs]
        if own and self.own_kernels:
            raise ValueError(
                "An equation whose inputs and outputs share dimensions of the kernel "
                "has a product for each of them, and can have no `rank` and no `core`. "
                f"Received: equation={self.equation!r}, "
                f"rank={self.low_rank and self.low_rank.rank}, "
                f"core={self.core and self.core.size}"
            )
        rest = [x for x in inputs if x not in summed + own]
        self._input_order = [inputs.index(x) for x in rest + own + summed]
        new = [x for x in kernel if x not in summed + own]
        self._kernel_order = [kernel.index(x) for x in summed + own + new]
        self._kernel_inverse = np.argsort(self._kernel_order).tolist()
        self._num_summed, self._num_own = len(summed), len(own)
        self._equations = _split(inputs, summed, rest, new, outputs)
        self._width = math.prod(sizes)
        self.build_context(self._width)
        bias_axes, bias_shape = self.bias_axes, None
        if self.task_bias is not None:
            full = self.compute_output_shape(input_shape)
            places = range(min(map(outputs.index, bias_axes)), len(outputs))
            bias_shape = [full[i] if outputs[i] in bias_axes else 1 for i in places]
            self.bias_axes = None  # Keras would add one that tasks share.
        super().build(input_shape)
        self._kernel_sizes = [self.kernel_shape[axis] for axis in self._kernel_order]
        self.bias_axes = bias_axes
        self.build_parts(bias_shape)

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        return ops.einsum(self.equation, inputs, kernel)

    def bind_inputs(self, inputs: Any, index: Any) -> Any:
        order = self._input_order
        x = ops.transpose(inputs, order)
        shape = ops.shape(x)
        x = ops.reshape(x, (*shape[: -self._num_summed], self._width))
        x = ops.reshape(self.context.transform(x, index), shape)
        return ops.transpose(x, np.argsort(order).tolist())

    def kernel_rows(self, kernel: Any) -> Any:
        return reshape(transpose(kernel, self._kernel_order), (self._width, -1))

    def kernel_of_rows(self, rows: Any) -> Any:
        return transpose(reshape(rows, self._kernel_sizes), self._kernel_inverse)

    def inputs_met(self, inputs: Any) -> Any:
        x = ops.transpose(inputs, self._input_order)
        rest = len(x.shape) - self._num_summed - self._num_own
        own = x.shape[rest : rest + self._num_own]
        return ops.reshape(x, (*ops.shape(x)[:rest], math.prod(own), self._width))

    def multiply_first(self, inputs: Any, rows: Any) -> Any:
        sizes = self._kernel_sizes[: self._num_summed]
        rows = ops.reshape(rows, (*sizes, rows.shape[-1]))
        return ops.einsum(self._equations[0], inputs, rows)

    def multiply_second(self, products: Any, rows: Any) -> Any:
        sizes = self._kernel_sizes[self._num_summed :]
        if rows is None:
            products = ops.reshape(products, (*ops.shape(products)[:-1], *sizes))
            return ops.einsum(self._equations[2], products)
        rows = ops.reshape(rows, (rows.shape[0], *sizes))
        return ops.einsum(self._equations[1], products, rows)


def sums_over_inputs(equation: str, rank: Any) -> Any:
    """Whether an equation, of inputs of that rank, leaves a context something to bind.

    That is what it sums over, of the inputs of each example.
    """
    inputs, kernel, outputs = _letters(equation, rank)
    if inputs[0] in kernel or inputs[0] != outputs[:1]:
        return False
    return any(x in inputs and x not in outputs for x in kernel)


def _split(inputs, summed, rest, new, outputs):
    """The products with two factors of a kernel, whose inner dimension comes last.

    And the equation that takes the first for the whole product.
    """
    used = {*inputs, *new, *outputs}
    inner = next(x for x in string.ascii_letters if x not in used)
    summed, rest, new = map("".join, (summed, rest, new))
    first = f"{inputs},{summed}{inner}->{rest}{inner}"
    second = f"{rest}{inner},{inner}{new}->{outputs}"
    return first, second, f"{rest}{new}->{outputs}"


def _letters(equation, rank):
    """The letters of inputs, kernel and outputs; an ellipsis gets some of its own."""
    inputs, kernel, outputs = re.split(",|->", equation.replace(" ", ""))
    unused = [x for x in string.ascii_letters if x not in equation]
    others = "".join(unused[: rank - len(inputs.replace("...", ""))])
    return inputs.replace("...", others), kernel, outputs.replace("...", others)
