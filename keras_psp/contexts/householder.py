"""Reflections."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._core.task import align
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Householder(Context):
    """Products of random reflections, orthogonal whatever is learned.

    ```
    C_k = prod_i (I - 2 v_ki v_ki^T / |v_ki|^2)
    ```

    One reflection changes one direction of M: unless it is learned, or there are about
    M / 2 of them, tasks share nearly all of their inputs' directions and forget nearly
    as much as without a context.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal vectors, on every backend.
        learnable: Boolean, whether the vectors are trained.
        reflections: Positive integer, how many a task has.
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
    >>> context = keras_psp.contexts.Householder(num_tasks=3)
    >>> x = keras.random.normal((1, 8))
    >>> twice = context(context(x, 2), 2)
    >>> bool(keras.ops.all(keras.ops.abs(twice - x) < 1e-5))
    True

    Reference:
        A. S. Householder, "Unitary triangularization of a nonsymmetric matrix", 1958;
        as contexts for [Cheung et al., 2019](https://arxiv.org/abs/1902.05522),
        section 2.1, "rotational superposition".
    """

    can_learn = True

    def __init__(
        self,
        num_tasks: int,
        seed: int = 0,
        learnable: bool = False,
        reflections: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_tasks, seed=seed, learnable=learnable, **kwargs)
        self.reflections = check_integer("reflections", reflections)

    def draw(self, tasks: Any, width: int) -> Any:
        normal = random_numbers.normal(self.seed, tasks, self.reflections * width)
        return normal.reshape(len(tasks), self.reflections, width)

    def bind(self, inputs: Any, index: Any) -> Any:
        return self._reflect(inputs, index, range(self.reflections))

    def unbind(self, inputs: Any, index: Any) -> Any:
        return self._reflect(inputs, index, reversed(range(self.reflections)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "reflections": self.reflections}

    def _reflect(self, inputs, index, order):
        vectors = self.rows_of(index)
        # A sum of squares is more than float16 can hold.
        precise = keras.backend.result_type(vectors.dtype, "float32")
        vectors = ops.normalize(ops.cast(vectors, precise), axis=-1)
        vectors = ops.cast(vectors, inputs.dtype)
        for i in order:
            vector = align(vectors[..., i, :], inputs)
            inputs = inputs - 2 * vector * ops.sum(
                inputs * vector, axis=-1, keepdims=True
            )
        return inputs
