"""Rotations by signs and Walsh-Hadamard transforms."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp.contexts import _hadamard_matrix as hadamard_matrix
from keras_psp.contexts._sign_context import SignContext


@keras.saving.register_keras_serializable(package="keras_psp")
class FastRotation(SignContext):
    """Nearly random rotations in M log M operations: signs and Hadamard transforms.

    ```
    C_k = D_k1 H D_k2 H' D_k3,  D_ki = diag(d_ki),  d_ki in {-1, +1}^M
    ```

    H is the normalized Walsh-Hadamard transform. If M is no power of two, H transforms
    the first P and H' the last P inputs, P the largest power of two below M; either
    leaves the other inputs as they are, so that `C_k` is orthogonal for every M.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal signs, on every backend and
            in every storage.
        learnable: Boolean. If `True` the signs are the initial values of real numbers
            that are trained; they need not stay orthogonal (see
            `orthogonality_drift()`).
        storage: `"bytes"`, 3 M bytes a task; `"bits"`, 3 M bits; or `"seed"`, nothing:
            the signs are computed anew from the seed where they are needed.
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
    >>> context = keras_psp.contexts.FastRotation(num_tasks=3)
    >>> y = context(keras.ops.array([[0.0, 3.0, 4.0]]), 1)
    >>> print(round(float(keras.ops.norm(y)), 4))
    5.0
    >>> context.bits_per_task
    72

    Reference:
        N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform", 2009;
        F. X. Yu et al., "Orthogonal random features", 2016. As contexts they stand for
        the rotations of [Cheung et al., 2019](https://arxiv.org/abs/1902.05522).
    """

    def count_signs(self, width: int) -> int:
        return 3 * width

    def bind(self, inputs: Any, index: Any) -> Any:
        first, second, third = self._diagonals(index, inputs)
        x = self._transform_first(inputs * first)
        return self._transform_last(x * second) * third

    def unbind(self, inputs: Any, index: Any) -> Any:
        first, second, third = self._diagonals(index, inputs)
        x = self._transform_last(inputs * third)
        return self._transform_first(x * second) * first

    def _diagonals(self, index, inputs):
        return ops.split(self.signs(index, inputs), 3, axis=-1)

    def _transform_first(self, x):
        power = _power_of_two(x.shape[-1])
        if power == x.shape[-1]:
            return _walsh_hadamard(x)
        parts = [_walsh_hadamard(x[..., :power]), x[..., power:]]
        return ops.concatenate(parts, axis=-1)

    def _transform_last(self, x):
        rest = x.shape[-1] - _power_of_two(x.shape[-1])
        if rest == 0:
            return _walsh_hadamard(x)
        parts = [x[..., :rest], _walsh_hadamard(x[..., rest:])]
        return ops.concatenate(parts, axis=-1)


def _power_of_two(width):
    return 1 << (width.bit_length() - 1)


@functools.cache
def _small_hadamard(n):
    return hadamard_matrix.rows(n, np.arange(n)) / np.sqrt(n)


def _walsh_hadamard(x):
    """The normalized transform of the last dimension, a power of two.

    As products with small Hadamard matrices, whose Kronecker product is the large one:
    that is more work than butterflies, but work that every device is fast at.
    """
    width, done = x.shape[-1], 1
    shape = (-1, *x.shape[1:])
    while done < width:
        n = min(32, width // done)
        x = ops.reshape(x, (*shape[:-1], width // n, n))
        x = ops.matmul(x, ops.convert_to_tensor(_small_hadamard(n), x.dtype))
        # The digit that is done moves to the front; in the end all are in place.
        x = ops.reshape(ops.swapaxes(x, -1, -2), shape)
        done *= n
    return x
