"""No context at all: the standard network, in the same code."""

from typing import Any

import keras

from keras_psp.contexts.context import Context


@keras.saving.register_keras_serializable(package="keras_psp")
class Identity(Context):
    """The same map for every task, `C_k = I`: the baseline without superposition.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Ignored; there is nothing to draw.
        learnable: Must be `False`; there is nothing to learn.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`. It changes nothing, but it must be a task. Or weights of
            shape `(batch, num_tasks)`, whose sum the inputs are multiplied with.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        TypeError, ValueError: An argument that is not one of the above, or a task index
            that can be read and lies outside `[0, num_tasks)`.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Identity(num_tasks=3)
    >>> float(context(keras.ops.ones((1, 1)), 2)[0, 0])
    1.0
    """

    def draw(self, tasks: Any, width: int) -> Any:
        return None

    def bind(self, inputs: Any, index: Any) -> Any:
        return inputs

    def unbind(self, inputs: Any, index: Any) -> Any:
        return inputs
