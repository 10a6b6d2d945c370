"""The loss of each task from one pass, and the callback that stops each in time."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core import private
from keras_psp._core.checks import check_boolean
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_number
from keras_psp._core.task_rows import is_task_rows
from keras_psp.models.task_batches import TaskBatches
from keras_psp.optimizers._around import find_in_chain
from keras_psp.optimizers.per_task import PerTask


def task_losses(model: Any, batches: TaskBatches, loss: Any = None) -> np.ndarray:
    """Returns each task's mean loss over its own examples, from one pass.

    Args:
        model: `keras_psp.models.StackedModel`, or another `TaskModel` of one output.
        batches: `keras_psp.models.TaskBatches` of all tasks.
        loss: Keras loss, metric function or their name: a function of labels and
            outputs with a value for each example, such as `"mse"` or
            `"sparse_categorical_accuracy"`. Defaults to the loss that the model is
            compiled with.

    Returns:
        NumPy array of shape `(num_tasks,)`; weighted, if the examples are.

    Raises:
        TypeError: `batches` are no `TaskBatches`.
        ValueError: They are of another number of tasks; there is no `loss`, or one that
            has no value for each example; the model has several outputs.

    Example:

    >>> import keras, keras_psp, numpy as np
    >>> plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])
    >>> model = keras_psp.stack(plain, num_tasks=3)
    >>> data = [(np.ones((8, 4), "float32"), np.ones((8, 1)))] * 3
    >>> batches = keras_psp.models.TaskBatches(data, model)
    >>> keras_psp.evaluation.task_losses(model, batches, "mse").shape
    (3,)
    """
    if not isinstance(batches, TaskBatches):
        raise TypeError(
            "`batches` must be `keras_psp.models.TaskBatches`. Received: "
            f"{type(batches).__name__}"
        )
    batches.check_model(model)
    measure = _function_of(model.loss if loss is None and model.compiled else loss)
    outputs = keras.tree.flatten(model.predict(batches, batch_size=None, verbose=0))
    if len(outputs) > 1:
        raise ValueError(
            "`model` must have one output. Received: "
            f"{model.name!r}, with {len(outputs)}"
        )
    (output,) = outputs
    sums = np.zeros((2, model.num_tasks))
    start = 0
    for i in range(batches.num_batches):
        x, y, *weight = batches[i]
        task = x["task"]
        (y,) = keras.tree.flatten(y)
        values = measure(y, output[start : start + len(task)])
        there, found = private.mask_of(values), ops.convert_to_numpy(values)
        start += len(task)
        if found.shape[:1] != task.shape:
            raise ValueError(
                "`loss` must have a value for each example. Received: "
                f"loss={measure!r}, whose values are of shape {found.shape}"
            )
        values = found.astype("float64").reshape(len(task), -1)
        weights = np.ones(values.shape)
        if there is not None:  # Of the other places the loss ignores the label.
            weights *= ops.convert_to_numpy(there).reshape(values.shape)
        if weight:
            weights *= np.reshape(weight[0], (len(task), -1))
        sums[0] += np.bincount(task, (weights * values).sum(1), model.num_tasks)
        sums[1] += np.bincount(task, weights.sum(1), model.num_tasks)
    return sums[0] / sums[1]


class StopEachTask(keras.callbacks.Callback):
    """Stops the training of each task when its own loss no longer improves.

    A task that is done stands still: its rate in the optimizer becomes 0, and its
    weights and statistics become the best that it had. `fit()` ends when all tasks are
    done.

    Args:
        validation: `keras_psp.models.TaskBatches` to measure each task's loss on.
        patience: Positive integer, after how many epochs without improvement a task is
            done.
        min_delta: Non-negative number, the least that counts as an improvement.
        restore_best: Whether a task gets back its best weights when it is done, or
            `fit()` ends.
        loss: See `keras_psp.evaluation.task_losses()`; less is better.

    Attributes:
        losses: List of an array of the tasks' losses for each epoch.
        best: NumPy array of each task's best loss.
        stopped: NumPy array of the epoch after which each task stood still, or -1.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: An argument is out of its range. When `fit()` begins: the optimizer
            is no `keras_psp.optimizers.PerTask` with `rates`.

    Example:

    >>> import keras, keras_psp, numpy as np
    >>> plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])
    >>> model = keras_psp.stack(plain, num_tasks=3)
    >>> data = [(np.ones((8, 4), "float32"), np.ones((8, 1)))] * 3
    >>> batches = keras_psp.models.TaskBatches(data, model)
    >>> model.compile(keras_psp.optimizers.PerTask("sgd", rates=1.0), "mse")
    >>> stop = keras_psp.evaluation.StopEachTask(batches, patience=2)
    >>> history = model.fit(batches, epochs=3, callbacks=[stop], verbose=0)
    >>> stop.best.shape
    (3,)
    """

    def __init__(
        self,
        validation: TaskBatches,
        patience: int = 5,
        min_delta: float = 0.0,
        restore_best: bool = True,
        loss: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(validation, TaskBatches):
            raise TypeError(
                "`validation` must be `keras_psp.models.TaskBatches`. Received: "
                f"{type(validation).__name__}"
            )
        self.validation, self.loss = validation, loss
        self.patience = check_integer("patience", patience)
        self.min_delta = check_number("min_delta", min_delta)
        self.restore_best = check_boolean("restore_best", restore_best)

    def on_train_begin(self, logs: dict | None = None) -> None:
        if getattr(self._per_task, "rates_given", None) is None:
            raise ValueError(
                "`StopEachTask` needs an optimizer whose rates can be set, as "
                "`PerTask(optimizer, rates=1.0)`. Received: "
                f"{self.model.optimizer!r}"
            )
        number = self.validation.num_tasks
        self.losses: list[np.ndarray] = []
        self.best = np.full(number, np.inf)
        self.stopped = np.full(number, -1)
        self._waited = np.zeros(number, int)
        self._weights = [ops.convert_to_numpy(v).copy() for v in self._rows]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._put_back(self.stopped >= 0)  # Their statistics have moved on.
        found = task_losses(self.model, self.validation, self.loss)
        self.losses.append(found)
        goes_on = self.stopped < 0
        better = goes_on & (found < self.best - self.min_delta)
        self.best[better] = found[better]
        self._waited = np.where(better, 0, self._waited + 1)
        newest = goes_on & ~(np.isfinite(self.best) & self.restore_best)
        for kept, variable in zip(self._weights, self._rows, strict=True):
            kept[better | newest] = ops.convert_to_numpy(variable)[better | newest]
        done = goes_on & (self._waited >= self.patience)
        self.stopped[done] = epoch
        self._put_back(done)
        self._per_task.set_rates(dict.fromkeys(np.flatnonzero(done).tolist(), 0.0))
        if (self.stopped >= 0).all():
            self.model.stop_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.restore_best:
            self._put_back(self.stopped < 0)

    def _put_back(self, tasks: np.ndarray) -> None:
        if not tasks.any():
            return
        for kept, variable in zip(self._weights, self._rows, strict=True):
            values = ops.convert_to_numpy(variable).copy()
            values[tasks] = kept[tasks]
            variable.assign(values)

    @property
    def _per_task(self) -> Any:
        optimizer = self.model.optimizer
        return find_in_chain(optimizer, lambda each: isinstance(each, PerTask))

    @property
    def _rows(self) -> list:
        """The weights that tasks have of their own, statistics among them."""
        return [v for v in self.model.variables if is_task_rows(v)]


def _function_of(loss: Any) -> Any:
    if isinstance(loss, str):
        try:
            return keras.losses.get(loss)
        except ValueError:
            loss = keras.metrics.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss.call
    if not callable(loss) or isinstance(loss, keras.metrics.Metric):
        raise ValueError(
            "`loss` must be a loss, a function of labels and outputs, or its name. "
            f"Received: loss={loss!r}"
        )
    return loss
