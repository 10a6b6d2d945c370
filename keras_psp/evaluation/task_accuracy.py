"""The accuracy on each task, from one pass over the data of all tasks."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.checks import check_integer


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskAccuracy(keras.metrics.Metric):
    """Counts, for each task, how often the largest logit is that of the label.

    Args:
        num_tasks: Positive integer, the number of tasks.
        name: Name of the metric.
        dtype: Dtype of the counts.

    Call arguments:
        y_true: Integer tensor of shape `(batch, 2)`: label and task.
        y_pred: Logits or probabilities of shape `(batch, num_classes)`.
        sample_weight: Optional tensor of shape `(batch,)`.

    Result:
        Tensor of shape `(num_tasks,)`: accuracies in [0, 1], NaN where a task had no
        example.

    Example:

    >>> from keras_psp.evaluation import TaskAccuracy
    >>> metric = TaskAccuracy(num_tasks=2)
    >>> y_true = [[0, 0], [1, 1], [0, 1]]  # label, task
    >>> metric.update_state(y_true, [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    >>> [float(accuracy) for accuracy in metric.result()]
    [1.0, 0.5]
    """

    def __init__(
        self, num_tasks: int, name: str = "task_accuracy", dtype: str | None = None
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_tasks = check_integer("num_tasks", num_tasks)
        self.correct = self.add_variable((num_tasks,), "zeros", name="correct")
        self.total = self.add_variable((num_tasks,), "zeros", name="total")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch; see the class for the arguments."""
        y_true = ops.cast(y_true, "int32")
        label, task = y_true[:, 0], y_true[:, 1]
        correct = ops.equal(ops.cast(ops.argmax(y_pred, axis=-1), "int32"), label)
        weight = ops.one_hot(task, self.num_tasks, dtype=self.dtype)
        if sample_weight is not None:
            weight = weight * ops.cast(sample_weight, self.dtype)[:, None]
        self.total.assign_add(ops.sum(weight, axis=0))
        correct = ops.cast(correct, self.dtype)[:, None]
        self.correct.assign_add(ops.sum(weight * correct, axis=0))

    def result(self) -> Any:
        """Returns the accuracies, `(num_tasks,)`."""
        return ops.divide(self.correct, self.total)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_tasks": self.num_tasks}
