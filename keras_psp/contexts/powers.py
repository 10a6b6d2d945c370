"""The powers of one vector of phases."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.task_index import is_soft
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.complex import Complex


@keras.saving.register_keras_serializable(package="keras_psp")
class Powers(Complex):
    """The k-th power of one vector of phases: each extra task costs nothing.

    ```
    C_k = C^k,  C = diag(exp(i phi)),  phi uniform on [-pi, pi)^(M / 2)
    ```

    on pairs of real inputs, as `Complex`. Task 0 has the identity.

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
            `(batch, num_tasks)`: task 1 and 3 in equal parts are task 2.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        TypeError, ValueError: An argument that is not one of the above, or a task index
            that can be read and lies outside `[0, num_tasks)`.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Powers(num_tasks=1000)
    >>> x = keras.random.normal((1, 8))
    >>> twice = context(context(x, 400), 500)
    >>> bool(keras.ops.all(keras.ops.abs(twice - context(x, 900)) < 1e-4))
    True
    >>> context.bits_per_task
    0

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1, "powers
        of a single context".
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        turns = random_numbers.words(self.seed, range(1), -(-input_shape[-1] // 2))[0]
        turns = (turns >> np.uint64(32)).astype("uint32").view("int32")
        # In 2^-32 of a turn, which the product with any k leaves exact as int32 wrap
        # round. Only angles that are trained have to be real numbers.
        self.base = self.add_weight(
            name="base",
            shape=turns.shape,
            initializer=lambda shape, dtype: ops.convert_to_tensor(
                turns * (np.pi / 2**31) if self.learnable else turns, dtype
            ),
            dtype=None if self.learnable else "int32",
            autocast=False,
            trainable=self.learnable,
        )

    def draw(self, tasks: Any, width: int) -> Any:
        return None

    def cos_and_sin(self, index: Any) -> tuple:
        if is_soft(index):
            powers = self.numbers_of().astype("float32")
            index = ops.matmul(ops.cast(index, "float32"), powers)
        else:
            index = self.numbers_of(index)
        power = ops.expand_dims(ops.convert_to_tensor(index), -1)
        base = ops.convert_to_tensor(self.base)
        if self.learnable:
            phases = ops.cast(power, base.dtype) * base
        else:
            phases = ops.cast(power * ops.cast(base, power.dtype), "float32")
            phases = phases * (np.pi / 2**31)
        return ops.cos(phases), ops.sin(phases)
