"""The callback that fills R[i, j] while a model learns task after task."""

import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.figures import draw_matrix
from keras_psp._core.figures import new_figure
from keras_psp._core.table import Shown
from keras_psp.evaluation.evaluate import evaluate
from keras_psp.evaluation.evaluate import read_task
from keras_psp.evaluation.task_accuracy import TaskAccuracy
from keras_psp.models import TaskModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_psp.datasets import TaskSequence


class AccuracyMatrix(Shown, keras.callbacks.Callback):
    """Measures the accuracy on the tasks while a model learns one after the other.

    With your own examples, give one callback to the `fit()` of each task, as the last
    of its callbacks. The end of each `fit()` adds a row to the matrix: the metric on
    all tasks, as `keras_psp.evaluate()` measures it.

    With a `TaskSequence`, give it to one `fit()` in which an epoch is a visit to a
    task. One pass over the test examples of the tasks seen so far, and of the next one,
    gives a row. Its mean is added to the epoch's logs as `average_accuracy`.

    Args:
        tasks: Dictionary of labelled examples by task, index or name, or a list of
            these in the order of the tasks, as `keras_psp.evaluate()` takes them; or
            the `TaskSequence` that is learned.
        batch_size: Positive integer, the batch size of the evaluation.
        separate: Boolean, for a `TaskSequence`: whether each task has its own network
            (see `FreshStart`). If so, only the new task is evaluated, and the
            accuracies on earlier tasks stay as they are.
        metric: String, for your own examples: the name of the compiled metric.

    Attributes:
        matrix: Array `(num_visits, num_tasks)`: R[i, j], the accuracy on task j after
            visit i (the training of task i, if each task is visited once). With your
            own examples a visit is a `fit()`. NaN for tasks that were added later; with
            a `TaskSequence`, for tasks not yet visited and for visits to come.
        ahead: Array `(num_tasks,)`: the accuracy on each task right before its first
            visit, if tasks are visited in order; NaN for task 0 and if `separate`.
        train_seconds: Seconds that each visit's training took.
        test_seconds: Seconds that each row of the matrix took.

    Raises:
        TypeError: `tasks` is none of these.
        ValueError: Examples have no labels; `separate` with your own examples. When
            `fit()` begins, before anything is trained: no task has such a name, the
            model has no such metric, or the examples do not fit it.

    Examples:

    >>> import keras, keras_psp, numpy as np
    >>> model = keras_psp.models.mlp((4,), 3, num_tasks=["paris", "tokyo"], units=8)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(keras_psp.consolidation.Gram("adam"), loss, metrics=["accuracy"])
    >>> x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 3
    >>> matrix = keras_psp.evaluation.AccuracyMatrix({"paris": (x, y), "tokyo": (x, y)})
    >>> for task in ("paris", "tokyo"):
    ...     inputs = {"image": x, "task": np.array([task] * 32)}
    ...     history = model.fit(inputs, y, callbacks=[matrix], verbose=0)
    ...     model.optimizer.end_task(model, (inputs, y))
    >>> matrix.matrix.shape, list(matrix.rows[0])
    ((2, 2), ['visit', 'paris', 'tokyo'])

    >>> from keras_psp import datasets
    >>> tasks = datasets.permuted("digits", num_tasks=2)
    >>> model = keras_psp.models.mlp(tasks.image_shape, tasks.num_classes, num_tasks=2)
    >>> model.compile("adam", loss)
    >>> callback = keras_psp.evaluation.AccuracyMatrix(tasks)
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

    matrix: np.ndarray
    ahead: np.ndarray

    def __init__(
        self,
        tasks: "TaskSequence | Mapping[int | str, Any] | Sequence[Any]",
        batch_size: int = 1000,
        separate: bool = False,
        metric: str = "accuracy",
    ):
        super().__init__()
        self.batch_size = check_integer("batch_size", batch_size)
        self.separate = separate
        self.metric = metric
        self.tasks: Any = tasks
        self._is_own = False
        if isinstance(tasks, (Mapping, list, tuple)):
            if separate:
                raise ValueError(
                    "`separate` is for a `keras_psp.datasets.TaskSequence`. Received: "
                    "separate=True and examples by task"
                )
            self._is_own = True
            self.tasks = {}
            self._begin(0, 0)
            self.add_tasks(tasks)
        elif not hasattr(tasks, "test_all"):
            raise TypeError(
                "`tasks` must be a dictionary of examples by task, a list of them, or "
                "a `keras_psp.datasets.TaskSequence`. Received: tasks of type "
                f"{type(tasks).__name__}"
            )

    def add_tasks(self, tasks: Mapping[int | str, Any] | Sequence[Any]) -> None:
        """Adds your own examples of more tasks; NaN in the rows that there are.

        Args:
            tasks: Dictionary of labelled examples by task, or a list of the examples of
                the tasks that come next.

        Raises:
            TypeError: `tasks` is neither; or the callback is of a `TaskSequence`.
            ValueError: There are none, or not of each; a task is there already.
        """
        if not self._is_own:
            raise TypeError(
                "Tasks can be added to examples by task, and not to a `TaskSequence`."
            )
        if isinstance(tasks, (list, tuple)):
            tasks = {len(self.tasks) + i: examples for i, examples in enumerate(tasks)}
        if not isinstance(tasks, Mapping) or not tasks:
            raise (ValueError if isinstance(tasks, Mapping) else TypeError)(
                "`tasks` must be a dictionary of examples by task, or a list of them. "
                f"Received: tasks={tasks!r:.100}"
            )
        there = [task for task in tasks if task in self.tasks]
        if there:
            raise ValueError(
                f"Each task may be added once. Received: {there[0]!r}, which is there"
            )
        self.tasks |= {task: _read(task, each) for task, each in tasks.items()}
        self._is_checked = False
        unknown = [(0, 0), (0, len(tasks))]
        self.matrix = np.pad(self.matrix, unknown, constant_values=np.nan)
        self.ahead = np.pad(self.ahead, unknown[1], constant_values=np.nan)

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._is_own:
            if not self._is_checked:
                self._measure(_first_batches(self.tasks, self.batch_size))
                self._is_checked = True
            self._start = time.perf_counter()
            return
        num_tasks = self.tasks.num_tasks
        self._begin(self.tasks.num_visits, num_tasks)
        self._evaluator, self._metric = make_evaluator(self.model, num_tasks)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if not self._is_own:
            self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._is_own:
            return
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

    def on_train_end(self, logs: dict | None = None) -> None:
        if not self._is_own:
            return
        trained = time.perf_counter()
        row = self._measure(self.tasks)
        visits = len(self.matrix) + 1
        self.matrix = np.concatenate([self.matrix, [row]])
        self.ahead[visits : visits + 1] = row[visits : visits + 1]
        self.train_seconds.append(trained - self._start)
        self.test_seconds.append(time.perf_counter() - trained)

    def _begin(self, num_visits: int, num_tasks: int) -> None:
        self.matrix = np.full((num_visits, num_tasks), np.nan)
        self.ahead = np.full(num_tasks, np.nan)
        self.train_seconds: list[float] = []
        self.test_seconds: list[float] = []

    def _measure(self, examples: dict[int | str, Any]) -> np.ndarray:
        """Returns the metric on each task."""
        rows = evaluate(self.model, examples, self.batch_size).rows
        known = [name for name in rows[0] if name not in ("task", "examples")]
        check_name("metric", self.metric, known)
        return np.array([row[self.metric] for row in rows])

    @property
    def _names(self) -> list[str]:
        if not self._is_own:
            return [f"task {j}" for j in range(self.tasks.num_tasks)]
        return [x if isinstance(x, str) else f"task {x}" for x in self.tasks]

    @property
    def rows(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """A dictionary for each visit so far: its number, and the accuracy by task."""
        return matrix_rows(self.matrix[: len(self.test_seconds)], self._names)

    def plot(self, path: Any = None) -> "Figure":
        """Draws the matrix.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        figure = new_figure(5.5, 4.2)
        axis = figure.subplots()
        unknown = np.full((1, len(self.ahead)), np.nan)  # Before the first `fit()`.
        image = draw_matrix(axis, 100 * (self.matrix if len(self.matrix) else unknown))
        label = "test accuracy (%)"
        if self._is_own:
            axis.set_ylabel("after fit()")
            label = f"{self.metric} (%)"
            if len(self.tasks) <= 12:
                axis.set_xticks(range(len(self.tasks)), self._names, rotation=30)
        figure.colorbar(image, ax=axis, label=label)
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

        With a `TaskSequence`, call it after this `fit()` has begun.

        Raises:
            KeyError, TypeError, ValueError: The state is not one of `state()` for these
                tasks.
        """
        matrix = np.array(state["matrix"], dtype="float64")
        ahead = np.array(state["ahead"], dtype="float64")
        visits = len(matrix) if self._is_own else len(self.matrix)
        wanted = (visits, len(self.ahead))
        if matrix.shape != wanted or ahead.shape != wanted[1:]:
            raise ValueError(
                f"The state must be of a matrix of shape {wanted}. "
                f"Received: shape {matrix.shape}"
            )
        self.matrix, self.ahead = matrix, ahead
        self.train_seconds = [float(x) for x in state["train_seconds"]]
        self.test_seconds = [float(x) for x in state["test_seconds"]]


def make_evaluator(
    model: keras.Model, num_tasks: int
) -> tuple[TaskModel, TaskAccuracy]:
    """Returns a model of the same layers, and the metric that `evaluate()` fills.

    The trained one keeps its metrics.
    """
    metric = TaskAccuracy(num_tasks)
    evaluator = TaskModel(model.input, model.output)
    options = {"loss": _label_loss, "metrics": [metric]}
    evaluator.compile(**options, jit_compile=model.jit_compile)
    return evaluator, metric


def matrix_rows(
    matrix: np.ndarray, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Returns an accuracy matrix as a dictionary for each row, to show as a table."""
    names = names or [f"task {j}" for j in range(matrix.shape[-1])]
    return [
        {"visit": i, **dict(zip(names, map(float, row), strict=True))}
        for i, row in enumerate(matrix)
    ]


def to_lists(array: np.ndarray) -> list:
    """Returns an array as lists, with `None` for NaN, which JSON does not have."""
    return np.where(np.isnan(array), np.array(None), array).tolist()


def _read(task: int | str, data: Any) -> tuple:
    """Returns a task's `(x, y)` or `(x, y, sample_weight)` as arrays."""
    return tuple(part for part in read_task(task, data) if part is not None)


def _first_batches(tasks: dict[int | str, tuple], size: int) -> dict[int | str, tuple]:
    return {
        task: keras.tree.map_structure(lambda array: array[:size], examples)
        for task, examples in tasks.items()
    }


def _label_loss(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(
        y_true[:, 0], y_pred, from_logits=True
    )
