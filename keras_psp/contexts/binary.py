"""Random signs, the paper's cheapest contexts."""

import keras
import numpy as np
from keras import ops

from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Binary(Context):
    """Random signs: every task flips half of the inputs.

    ```
    C_k = diag(c_k),  c_k in {-1, +1}^M
    ```

    The signs of M inputs take M bytes a task. The inner product of two contexts,
    divided by M, is a random number of mean 0 and variance 1 / M: so is what one task
    leaks into another.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Integer. Equal seeds give equal signs, on every backend.
        learnable: Boolean. If `True` the signs are the initial values of real numbers
            that are trained, as in the authors' code; they need not stay orthogonal.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Binary(num_tasks=3)
    >>> x = keras.ops.ones((2, 6))
    >>> print(keras.ops.convert_to_numpy(context(x, [0, 2])).astype(int))
    [[-1  1 -1  1  1  1]
     [-1 -1  1 -1  1  1]]
    >>> context.bits_per_task
    48

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1, "binary
        superposition".
    """

    def build(self, input_shape):
        shape = (self.num_tasks, input_shape[-1])
        self.contexts = self.add_weight(
            name="contexts",
            shape=shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                _random_signs(shape, self.seed), dtype
            ),
            dtype=None if self.learnable else "int8",
            trainable=self.learnable,
        )
        super().build(input_shape)

    def bind(self, inputs, index):
        signs = ops.cast(ops.take(self.contexts, index, axis=0), inputs.dtype)
        if len(signs.shape) == 2:
            signs = ops.reshape(
                signs, (-1,) + (1,) * (len(inputs.shape) - 2) + (inputs.shape[-1],)
            )
        return ops.multiply(inputs, signs)

    def unbind(self, inputs, index):
        return self.bind(inputs, index)  # A diagonal map is its own transpose.

    @property
    def numbers_per_task(self):
        return self.contexts.shape[-1]


def _random_signs(shape, seed):
    # From the raw stream of the bit generator, which NumPy promises never to change.
    num_bits = int(np.prod(shape))
    words = np.random.PCG64(seed).random_raw(-(-num_bits // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=num_bits)
    return (2 * bits.astype(np.int8) - 1).reshape(shape)
