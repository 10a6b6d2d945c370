"""Permutations with signs."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.task import align
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.permutation import Permutation


@keras.saving.register_keras_serializable(package="keras_psp")
class SignedPermutation(Permutation):
    """Random permutations of the inputs with random signs.

    ```
    (x C_k)_j = s_kj x_{p_k(j)},  s_kj in {-1, +1}
    ```

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
    >>> context = keras_psp.contexts.SignedPermutation(num_tasks=3)
    >>> x = keras.ops.array([[0.0, 1.0, 2.0, 3.0]])
    >>> print(sorted(abs(keras.ops.convert_to_numpy(context(x, 1)))[0].tolist()))
    [0.0, 1.0, 2.0, 3.0]

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), in the authors' code.
    """

    def draw(self, tasks: Any, width: int) -> Any:
        # Number j + 1 with its sign: it takes no more room than the number alone.
        order = super().draw(tasks, width)
        words = random_numbers.words(self.seed, tasks, width)
        return np.where(words & np.uint64(1), order + 1, -1 - order).astype(order.dtype)

    def bind(self, inputs: Any, index: Any) -> Any:
        return super().bind(inputs, index) * self._signs(index, inputs)

    def unbind(self, inputs: Any, index: Any) -> Any:
        return super().unbind(inputs * self._signs(index, inputs), index)

    def _look_up(self, index):
        return ops.abs(super()._look_up(index)) - 1

    def _signs(self, index, inputs):
        signs = ops.sign(super()._look_up(index))
        return align(ops.cast(signs, inputs.dtype), inputs)
