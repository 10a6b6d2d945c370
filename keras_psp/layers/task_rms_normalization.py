"""Root mean square normalization with a scale for each task."""

from typing import Any

import keras
from keras import ops

from keras_psp.layers._task_rows import TaskRows


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskRMSNormalization(TaskRows, keras.layers.RMSNormalization):
    """A `keras.layers.RMSNormalization` with a `scale` for each task.

    ```
    y = scale_k x / sqrt(mean(x^2) + epsilon)
    ```

    Train it with `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also
    moves the scales of tasks without an example in the batch.

    Args:
        num_tasks: Positive integer, the number of tasks.
        **kwargs: `keras.layers.RMSNormalization` arguments, but that `axis` must be the
            last one.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, ..., channels)`.

    Output shape:
        The input's. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled or exported
        graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskRMSNormalization(num_tasks=10)
    >>> tuple(layer(keras.ops.ones((3, 4)), [0, 7, 7]).shape)
    (3, 4)
    >>> tuple(layer.scale.shape)
    (10, 4)

    Reference:
        [Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467), equation 4, task
        by task.
    """

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.axis not in (-1, [-1]):
            raise ValueError(
                "Each task's scale is along the last dimension. "
                f"Received: axis={self.axis}"
            )
        self.set_num_tasks(num_tasks)

    def build(self, input_shape: Any) -> None:
        self.add_rows("scale", (input_shape[-1],), keras.initializers.Ones())

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.parse_task(task, inputs)
        x = ops.rms_normalization(inputs, None, axis=-1, epsilon=self.epsilon)
        return task.mask(ops.multiply(x, task.rows(self.scale, x)))
