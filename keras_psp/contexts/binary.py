"""Random signs, the paper's cheapest contexts."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import multiply_add
from keras_psp.contexts._sign_context import SignContext


@keras.saving.register_keras_serializable(package="keras_psp")
class Binary(SignContext):
    """Random signs: every task flips half of the inputs.

    ```
    C_k = diag(c_k),  c_k in {-1, +1}^M
    ```

    The inner product of two contexts, divided by M, is a random number of mean 0 and
    variance 1 / M: so is what one task leaks into another.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal signs, on every backend and
            in every storage.
        learnable: Boolean. If `True` the signs are the initial values of real numbers
            that are trained, as in the authors' code; they need not stay orthogonal
            (see `orthogonality_drift()`).
        storage: `"bytes"`, M bytes a task; `"bits"`, M bits; or `"seed"`, nothing: the
            signs are computed anew from the seed where they are needed, so that
            there may be a million tasks.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example; or weights of shape
            `(batch, num_tasks)`, to mix the signs with.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        TypeError, ValueError: An argument that is not one of the above, or a task index
            that can be read and lies outside `[0, num_tasks)`.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Binary(num_tasks=3)
    >>> x = keras.ops.ones((2, 6))
    >>> print(keras.ops.convert_to_numpy(context(x, [0, 2])).astype(int))
    [[ 1 -1  1  1  1 -1]
     [-1 -1 -1  1 -1  1]]
    >>> context.bits_per_task
    48

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1, "binary
        superposition".
    """

    def bind(self, inputs: Any, index: Any) -> Any:
        return ops.multiply(inputs, self.signs(index, inputs))

    def unbind(self, inputs: Any, index: Any) -> Any:
        return self.bind(inputs, index)  # A diagonal map is its own transpose.

    def unbind_onto(self, inputs: Any, others: Any, index: Any) -> Any:
        kind = type(self)
        if kind.bind is not Binary.bind or kind.unbind is not Binary.unbind:
            return super().unbind_onto(inputs, others, index)  # A map of its own.
        return multiply_add(inputs, self.signs(index, inputs), others)

    def mix(self, inputs: Any, weights: Any) -> Any:
        return self.bind(inputs, weights)
