"""A bias for each task."""

from typing import Any

import keras
from keras import ops

from keras_psp.layers._task_rows import TaskRows


class TaskBias(TaskRows, keras.layers.Layer):
    """Holds the weight in a child layer, because Keras saves a child layer's weights.

    Args:
        num_tasks: Positive integer, the number of tasks.
        initializer: Keras initializer of one task's bias.
        regularizer: Keras regularizer, or `None`.
        constraint: Keras constraint, or `None`.
        **kwargs: `keras.layers.Layer` arguments.
    """

    def __init__(
        self,
        num_tasks: int,
        initializer: Any,
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self._options = initializer, regularizer, constraint

    def build(self, shape: Any) -> None:
        initializer, regularizer, constraint = self._options
        self.add_rows(
            "bias", shape, initializer, regularizer=regularizer, constraint=constraint
        )

    def add_to(self, outputs: Any, task: Any, axis: Any = None) -> Any:
        """Adds to each example's outputs its task's bias; see `Task.rows()`."""
        return ops.add(outputs, task.rows(self.bias, outputs, axis))
