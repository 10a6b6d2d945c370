"""Random rotations, the most thorough and most expensive contexts."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.task import Task
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Rotation(Context):
    """Random orthogonal matrices, from Haar's uniform distribution on O(M).

    ```
    C_k = Q_k
    ```

    A task takes M^2 numbers, as many as a kernel of M units, and binding takes as long
    as such a layer; a batch of mixed tasks takes `num_tasks` times as long.
    `FastRotation` is nearly as random for a small part of that.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal matrices, on every backend.
        learnable: Must be `False`: a trained matrix would not stay orthogonal.
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
    >>> context = keras_psp.contexts.Rotation(num_tasks=3)
    >>> y = context(keras.ops.array([[3.0, 4.0]]), 1)
    >>> print(round(float(keras.ops.norm(y)), 4))
    5.0

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1,
        "rotational superposition"; F. Mezzadri, "How to generate random matrices from
        the classical compact groups", 2007.
    """

    def draw(self, tasks: Any, width: int) -> Any:
        matrices = np.empty((len(tasks), width, width), "float32")
        for i, task in enumerate(tasks):
            normal = random_numbers.normal(
                self.seed, range(task, task + 1), width * width
            )
            q, r = np.linalg.qr(normal.reshape(width, width))
            # What makes it Haar's: QR alone prefers some signs.
            matrices[i] = q * np.sign(np.diag(r))
        return matrices

    def bind(self, inputs: Any, index: Any) -> Any:
        return _rotate(inputs, index, ops.convert_to_tensor(self.contexts), (0, 1))

    def unbind(self, inputs: Any, index: Any) -> Any:
        return _rotate(inputs, index, ops.convert_to_tensor(self.contexts), (1, 0))

    def mix(self, inputs: Any, weights: Any) -> Any:
        return _rotate_mixed(inputs, weights, self.contexts, (0, 1))


def _rotate(inputs, index, matrices, axes):
    """Multiplies with the matrices, or if `axes` are swapped with their transposes."""
    if len(getattr(index, "shape", ())) == 0:
        matrix = ops.transpose(take_rows(matrices, index), axes)
        return ops.matmul(inputs, ops.cast(matrix, inputs.dtype))

    # The gradient of a rotation is the rotation back. Left to itself JAX keeps the
    # matrices of both branches for it, which takes as long again as the rotation.
    @ops.custom_gradient
    def rotate(inputs, index, matrices):
        def gradient(*args, upstream=None):
            upstream = args[0] if upstream is None else upstream
            back = _rotate_each(upstream, index, matrices, axes[::-1])
            return back, None, None

        return _rotate_each(inputs, index, matrices, axes), gradient

    return rotate(inputs, index, matrices)


def _rotate_each(inputs, index, matrices, axes):
    def one(task):
        return _rotate(inputs, task.index, matrices, axes)

    def mixed():
        weights = ops.one_hot(index, matrices.shape[0], dtype=inputs.dtype)
        return _rotate_mixed(inputs, weights, matrices, axes)

    return Task.of_index(index, matrices.shape[0]).branch(one, mixed)


def _rotate_mixed(inputs, weights, matrices, axes):
    # By every task's matrix: to gather one for each example would take far more
    # memory, and more time too unless there are few. A product for each task, not one
    # for all, so that the result does not depend on how many there are.
    matrices = ops.transpose(matrices, (0, *(1 + a for a in axes)))
    flat = ops.reshape(inputs, (1, -1, inputs.shape[-1]))
    rotated = ops.matmul(flat, ops.cast(matrices, inputs.dtype))
    rotated = ops.reshape(rotated, (matrices.shape[0], -1, *inputs.shape[1:]))
    return ops.einsum("bk,kb...->b...", ops.cast(weights, inputs.dtype), rotated)
