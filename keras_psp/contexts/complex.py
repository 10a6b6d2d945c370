"""Unit phases, acting on pairs of real numbers."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.task import align
from keras_psp._core.task_index import is_soft
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Complex(Context):
    """Random phases: every task turns each pair of inputs by an angle of its own.

    ```
    C_k = diag(exp(i phi_k)),  phi_k uniform on [-pi, pi)^(M / 2)
    ```

    The first half of the inputs are the real, the second half the imaginary parts of
    M / 2 complex numbers, so that a real network keeps its size. If M is odd, the last
    input keeps its size too, and gets the sign of a cosine. Fixed contexts are stored
    as cosines and sines, M numbers a task; learned ones as M / 2 phases.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal phases, on every backend.
        learnable: Boolean, whether the phases are trained. The contexts stay
            orthogonal all the same.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example; or weights of shape
            `(batch, num_tasks)`, to average the phases with.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        TypeError, ValueError: An argument that is not one of the above, or a task index
            that can be read and lies outside `[0, num_tasks)`.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Complex(num_tasks=3)
    >>> y = context(keras.ops.array([[3.0, 4.0]]), 1)
    >>> print(round(float(keras.ops.norm(y)), 4))
    5.0

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1, "complex
        superposition"; there the network itself is complex, as of `PSPComplexDense`.
    """

    can_learn = True

    def draw(self, tasks: Any, width: int) -> Any:
        turns = random_numbers.uniform(self.seed, tasks, -(-width // 2))
        phases = 2 * np.pi * turns - np.pi
        if self.learnable:
            return phases
        # Twice the numbers, but no cosine is to be computed for any example.
        return np.stack([np.cos(phases), np.sin(phases)], axis=1)

    def bind(self, inputs: Any, index: Any) -> Any:
        return self._turn(inputs, index, 1)

    def unbind(self, inputs: Any, index: Any) -> Any:
        return self._turn(inputs, index, -1)

    def mix(self, inputs: Any, weights: Any) -> Any:
        return self.bind(inputs, weights)

    def cos_and_sin(self, index: Any) -> tuple:
        """Returns both of the angles, each `(n,)` or `(batch, n)`, n = ceil(M / 2)."""
        bank = ops.convert_to_tensor(self.contexts)
        if not self.learnable:
            if not is_soft(index):
                return ops.unstack(take_rows(bank, index), axis=-2)
            bank = ops.arctan2(bank[:, 1], bank[:, 0])
        if is_soft(index):
            phases = ops.matmul(ops.cast(index, bank.dtype), bank)
        else:
            phases = take_rows(bank, index)
        return ops.cos(phases), ops.sin(phases)

    def _turn(self, inputs, index, direction):
        half = inputs.shape[-1] // 2
        cos, sin = self.cos_and_sin(index)
        cos = align(ops.cast(cos, inputs.dtype), inputs)
        sin = align(ops.cast(direction * sin, inputs.dtype), inputs)
        real, imaginary = inputs[..., :half], inputs[..., half : 2 * half]
        parts = [
            real * cos[..., :half] - imaginary * sin[..., :half],
            real * sin[..., :half] + imaginary * cos[..., :half],
        ]
        if inputs.shape[-1] % 2:
            parts.append(inputs[..., -1:] * ops.sign(cos[..., -1:]))
        return ops.concatenate(parts, axis=-1)
