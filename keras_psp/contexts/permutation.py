"""Permutations of the inputs, with and without signs."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import gather_last
from keras_psp._core.task import align
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Permutation(Context):
    """Random permutations: every task shuffles the inputs in a way of its own.

    ```
    (x C_k)_j = x_{p_k(j)}
    ```

    The inputs are gathered, never multiplied. Permutations keep the mean of the inputs
    (rectified units have one), and so tasks interfere more than with
    `SignedPermutation`.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal contexts, on every backend.
        learnable: Must be `False`; there is nothing to learn.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example; or weights of shape
            `(batch, num_tasks)`, to mix the bound inputs with.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        TypeError, ValueError: An argument that is not one of the above, or a task index
            that can be read and lies outside `[0, num_tasks)`.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Permutation(num_tasks=3)
    >>> x = keras.ops.array([[0.0, 1.0, 2.0, 3.0]])
    >>> print(sorted(keras.ops.convert_to_numpy(context(x, 1))[0].tolist()))
    [0.0, 1.0, 2.0, 3.0]
    >>> context.bits_per_task
    64

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), in the authors' code.
    """

    def draw(self, tasks: Any, width: int) -> Any:
        words = random_numbers.words(self.seed, tasks, width)
        # A number takes two bytes where it can, and a sign has room beside it.
        dtype = "int16" if width < 2**15 else "int32"
        return np.argsort(words, axis=-1, kind="stable").astype(dtype)

    def bind(self, inputs: Any, index: Any) -> Any:
        return _gather(inputs, self._look_up(index))

    def unbind(self, inputs: Any, index: Any) -> Any:
        return _gather(inputs, ops.argsort(self._look_up(index), axis=-1))

    def _look_up(self, index):
        return ops.cast(self.rows_of(index), "int32")


def _gather(inputs, order):
    if len(order.shape) == 1:
        return ops.take(inputs, order, axis=-1)
    if len(inputs.shape) > 2:
        order = ops.broadcast_to(align(order, inputs), ops.shape(inputs))
    return gather_last(inputs, order)
