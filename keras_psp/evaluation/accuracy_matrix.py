"""The callback that fills R[i, j] while a model learns task after task."""

import time
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from keras_psp._core.figures import draw_matrix
from keras_psp._core.figures import new_figure
from keras_psp._core.table import Shown
from keras_psp.evaluation.task_accuracy import TaskAccuracy
from keras_psp.models import TaskModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_psp.datasets import TaskSequence


class AccuracyMatrix(Shown, keras.callbacks.Callback):
    """Measures the accuracy on all tasks seen so far at the end of each task.

    For a `fit()` in which an epoch is a visit to a task. One pass over the test
    examples of these tasks, and of the next one, gives a row of the matrix. The mean of
    the row is added to the epoch's logs as `average_accuracy`.

    Args:
        tasks: The `TaskSequence` that is learned.
        batch_size: Positive integer, the batch size of the evaluation.
        separate: Boolean, whether each task has its own network (see `FreshStart`). If
            so, only the new task is evaluated, and the accuracies on earlier tasks stay
            as they are.

    Attributes:
        matrix: Array `(num_visits, num_tasks)`: R[i, j], the accuracy on task j after
            visit i (the training of task i, if each task is visited once); NaN for
            tasks not yet visited and for visits to come.
        ahead: Array `(num_tasks,)`: the accuracy on each task right before its first
            visit; NaN for task 0 and if `separate`.
        train_seconds: Seconds that each visit's training took.
        test_seconds: Seconds that each row of the matrix took.

    Example:

    >>> import keras, keras_psp
    >>> from keras_psp import datasets
    >>> from keras_psp.benchmarks import AccuracyMatrix
    >>> tasks = datasets.permuted("digits", num_tasks=2)
    >>> model = keras_psp.models.mlp(tasks.image_shape, tasks.num_classes, num_tasks=2)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss)
    >>> callback = AccuracyMatrix(tasks)
    >>> history = model.fit(
    ...     tasks.stream(steps_per_task=30, batch_size=32),
    ...     epochs=2,
    ...     steps_per_epoch=30,
    ...     callbacks=[callback],
    ...     shuffle=False,
    ...     verbose=0,
    ... )
    >>> bool((callback.matrix[1] > 0.5).all())
    True
    """

    def __init__(
        self, tasks: "TaskSequence", batch_size: int = 1000, separate: bool = False
    ):
        super().__init__()
        self.tasks = tasks
        self.batch_size = batch_size
        self.separate = separate

    def on_train_begin(self, logs: dict | None = None) -> None:
        num_tasks = self.tasks.num_tasks
        self.matrix = np.full((self.tasks.num_visits, num_tasks), np.nan)
        self.ahead = np.full(num_tasks, np.nan)
        self.train_seconds: list[float] = []
        self.test_seconds: list[float] = []
        # The same layers in another model, so that the trained one keeps its metrics.
        self._metric = TaskAccuracy(num_tasks)
        self._evaluator = TaskModel(self.model.input, self.model.output)
        self._evaluator.compile(
            loss=_label_loss,
            metrics=[self._metric],
            jit_compile=self.model.jit_compile,
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        trained = time.perf_counter()
        self.train_seconds.append(trained - self._start)
        seen = min(epoch + 1, self.tasks.num_tasks)
        first = epoch if self.separate else 0
        last = seen if self.separate else min(epoch + 2, self.tasks.num_tasks)
        dataset = self.tasks.test_all(range(first, last), self.batch_size, epoch)
        self._evaluator.evaluate(dataset, verbose=0)
        row = np.array(keras.ops.convert_to_numpy(self._metric.result()))
        row[:first] = self.matrix[first - 1, :first]
        self.matrix[epoch, :seen] = row[:seen]
        self.ahead[seen:last] = row[seen:last]
        self.test_seconds.append(time.perf_counter() - trained)
        if logs is not None:
            logs["average_accuracy"] = float(row[:seen].mean())

    @property
    def rows(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """A dictionary for each visit so far: its number, and the accuracy by task."""
        return matrix_rows(self.matrix[: len(self.test_seconds)])

    def plot(self, path: Any = None) -> "Figure":
        """Draws the matrix.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        figure = new_figure(5.5, 4.2)
        axis = figure.subplots()
        image = draw_matrix(axis, 100 * self.matrix)
        figure.colorbar(image, ax=axis, label="test accuracy (%)")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def state(self) -> dict[str, list]:
        """Returns what has been measured, for a JSON file; see `restore()`."""
        return {
            "matrix": to_lists(self.matrix),
            "ahead": to_lists(self.ahead),
            "train_seconds": list(self.train_seconds),
            "test_seconds": list(self.test_seconds),
        }

    def restore(self, state: dict[str, list]) -> None:
        """Continues what an earlier `fit()` has measured.

        Call it after this `fit()` has begun.

        Raises:
            KeyError, TypeError, ValueError: The state is not one of `state()` for these
                tasks.
        """
        matrix = np.array(state["matrix"], dtype="float64")
        ahead = np.array(state["ahead"], dtype="float64")
        if matrix.shape != self.matrix.shape or ahead.shape != self.ahead.shape:
            raise ValueError(
                f"The state must be of a matrix of shape {self.matrix.shape}. "
                f"Received: shape {matrix.shape}"
            )
        self.matrix, self.ahead = matrix, ahead
        self.train_seconds = [float(x) for x in state["train_seconds"]]
        self.test_seconds = [float(x) for x in state["test_seconds"]]


def matrix_rows(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns an accuracy matrix as a dictionary for each row, to show as a table."""
    return [
        {"visit": i, **{f"task {j}": float(x) for j, x in enumerate(row)}}
        for i, row in enumerate(matrix)
    ]


def to_lists(array: np.ndarray) -> list:
    """Returns an array as lists, with `None` for NaN, which JSON does not have."""
    return np.where(np.isnan(array), np.array(None), array).tolist()


def _label_loss(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(
        y_true[:, 0], y_pred, from_logits=True
    )
