"""Layer normalization with a scale and an offset for each task."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp.layers._task_rows import TaskRows


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskLayerNormalization(TaskRows, keras.layers.LayerNormalization):
    """A `keras.layers.LayerNormalization` with a `gamma` and a `beta` for each task.

    ```
    y = gamma_k (x - mean(x)) / sqrt(variance(x) + epsilon) + beta_k
    ```

    Train them with `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also
    moves the scales and offsets of tasks without an example in the batch.

    Args:
        num_tasks: Positive integer, the number of tasks.
        **kwargs: `keras.layers.LayerNormalization` arguments, but that `axis` must be
            the last one, and no `rms_scaling`.

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
    >>> layer = keras_psp.layers.TaskLayerNormalization(num_tasks=10)
    >>> tuple(layer(keras.ops.ones((3, 4)), [0, 7, 7]).shape)
    (3, 4)
    >>> tuple(layer.gamma.shape)
    (10, 4)

    Reference:
        [Ba et al., 2016](https://arxiv.org/abs/1607.06450), equation 4, task by task.
    """

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.axis not in (-1, [-1]) or self.rms_scaling:
            raise ValueError(
                "Each task's scale is along the last dimension, and there is no "
                f"`rms_scaling`. Received: axis={self.axis}, "
                f"rms_scaling={self.rms_scaling}"
            )
        self.set_num_tasks(num_tasks)

    def build(self, input_shape: Any) -> None:
        self.gamma = self.beta = None
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                self.add_rows(
                    name,
                    (input_shape[-1],),
                    getattr(self, f"{name}_initializer"),
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                    autocast=False,
                )

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.parse_task(task, inputs)
        options = {"axis": -1, "epsilon": self.epsilon}
        if task.is_one:  # In one operation, as Keras' layer.
            gamma, beta = (
                None if rows is None else take_rows(rows, task.index)
                for rows in (self.gamma, self.beta)
            )
            x = ops.layer_normalization(inputs, gamma, beta, **options)
            return task.mask(ops.cast(x, self.compute_dtype))
        x = ops.layer_normalization(inputs, None, None, **options)
        if self.gamma is not None:
            x = ops.multiply(x, task.rows(self.gamma, x))
        if self.beta is not None:
            x = ops.add(x, task.rows(self.beta, x))
        return task.mask(ops.cast(x, self.compute_dtype))
