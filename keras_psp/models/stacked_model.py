"""A model of many independent ones, which are trained together as if alone."""

import inspect
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp._core.task import Task
from keras_psp._core.task import in_blocks
from keras_psp._core.task_index import check_num_tasks
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.task_batches import TaskBatches
from keras_psp.models.task_model import TaskModel
from keras_psp.optimizers.per_task import tell_present

_MEANS = ("sum_over_batch_size", "mean")


@keras.saving.register_keras_serializable(package="keras_psp")
class StackedModel(TaskModel):
    """A `TaskModel` of which each task is trained as if it were alone.

    `keras_psp.stack()` makes it. No layer shares a weight between tasks. In training,
    the loss is each task's own mean, summed over the tasks in the batch:

    ```
    L = sum_k 1 / n_k sum_(i of task k) w_i l_i,   n_k examples with a weight w_i != 0
    ```

    so that the gradient by a task's weights is that of its own loss, whoever else is in
    the batch. With a `keras_psp.optimizers.PerTask` around the optimizer, the weights
    are those of the task trained alone on the same batches. The `"loss"` that `fit()`
    shows is this sum; divide by the number of tasks for a mean. `evaluate()` and
    `"val_loss"` give Keras' mean over the examples.

    `fit()` takes any batches. Those of `keras_psp.models.TaskBatches` are by far the
    fastest: they hold all tasks in order, so that each layer is one product of all
    kernels with the batch.

    A task that `add_tasks()` adds begins with fresh initial weights. A layer that is
    kept as copies (see `keras_psp.stack()`) begins with those that the model was made
    of.

    Args:
        inputs: Dictionary of symbolic inputs; `"task"` of an integer dtype.
        outputs: Symbolic outputs, in any structure, of floats or integers.
        **kwargs: `keras.Model` arguments.

    Raises:
        ValueError: See `TaskModel`. In `fit()` and `train_on_batch()`: a loss has
            another reduction than `"sum_over_batch_size"`, or `TaskBatches` are of
            another number of tasks.

    Example:

    >>> import keras, keras_psp
    >>> plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])
    >>> model = keras_psp.stack(plain, num_tasks=3)
    >>> type(model).__name__, model.num_tasks
    ('StackedModel', 3)
    """

    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        # Which of Keras' functions are given batches `in_blocks()`.
        self._in_blocks = dict.fromkeys(("train", "test", "predict"), False)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments
        del given["self"]
        x = given.get("x")
        self._check_loss()
        self._is_given("train", x)
        self._is_given("test", given.get("validation_data"))
        if isinstance(x, TaskBatches):
            given["shuffle"] = False  # They draw an order for each task themselves.
            anew = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: x.next_epoch()
            )
            callbacks = given.get("callbacks")
            if isinstance(callbacks, keras.callbacks.CallbackList):
                callbacks.append(anew)
            else:
                given["callbacks"] = [*keras.tree.flatten(callbacks or []), anew]
        return super().fit(**given)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("_use_cached_eval_dataset"):
            self._is_given("test", x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_given("predict", x)
        return super().predict(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_loss()
        self._is_given("train", x)
        return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_given("test", x)
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        self._is_given("predict", x)
        return super().predict_on_batch(x)

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        x, _, weight = keras.utils.unpack_x_y_sample_weight(args[-1])
        are = self._in_blocks["train"]
        with in_blocks(are):
            task = Task(self._task_in(x), self.num_tasks)
            every = ops.stack(self._counted(task, weight))
            counted = ops.greater(ops.max(every, axis=0), 0)
            present = task.sum_by_task(ops.cast(counted, "float32"))
        with (
            in_blocks(are, None if weight is None else counted),
            tell_present(ops.greater(present, 0)),
        ):
            return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with in_blocks(self._in_blocks["test"]):
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with in_blocks(self._in_blocks["predict"]):
            return super().predict_step(*args, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss: in training the sum of each task's own mean."""
        if training:
            sample_weight = self._weights(self._task_in(x), sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def add_tasks(self, n: int | Sequence[str]) -> Self:
        new = self.next_tasks(check_num_tasks(n, "n")[0])
        super().add_tasks(n)
        for layer in self._task_layers():
            if isinstance(layer, TaskRows) and not isinstance(layer, TaskCopies):
                layer.draw_rows(new)
        return self

    def _weights(self, task, given):
        """Returns weights with which the mean over the batch is the sum of means."""
        task = Task(task, self.num_tasks)

        def weigh(weight, counted):
            numbers = ops.maximum(task.sum_by_task(counted), 1.0)
            total = ops.cast(ops.shape(counted)[0], counted.dtype)
            scale = total / task.rows(numbers, counted)
            if weight is None:
                return scale
            weight = ops.convert_to_tensor(weight, counted.dtype)
            return weight * ops.reshape(scale, (-1,) + (1,) * (len(weight.shape) - 1))

        counted = self._counted(task, given)
        if given is None:
            return weigh(None, counted[0])
        weights = map(weigh, keras.tree.flatten(given), counted)
        return keras.tree.pack_sequence_as(given, list(weights))

    def _counted(self, task, given):
        """Returns which examples count, as 1 and 0, for each array of weights."""
        if given is None:
            return [ops.ones(ops.shape(task.index)[:1])]
        found = []
        for weight in keras.tree.flatten(given):
            weight = ops.convert_to_tensor(weight)
            axes = tuple(range(1, len(weight.shape)))
            counts = ops.any(ops.not_equal(weight, 0), axis=axes)
            found.append(ops.cast(counts, keras.config.floatx()))
        return found

    def _check_loss(self) -> None:
        for loss in keras.tree.flatten(getattr(self, "loss", None)):
            if isinstance(loss, keras.losses.Loss) and loss.reduction not in _MEANS:
                raise ValueError(
                    "The loss of a stacked model must be a mean over the examples, "
                    'with reduction="sum_over_batch_size": each task has its own. '
                    f"Received: {loss.name!r} with reduction={loss.reduction!r}"
                )

    def _is_given(self, function: str, data: Any) -> None:
        """Notes whether one of Keras' functions is given batches in blocks."""
        blocks = isinstance(data, TaskBatches)
        if blocks:
            data.check_model(self)
        strategy = getattr(self, "distribute_strategy", None)
        if getattr(strategy, "num_replicas_in_sync", 1) > 1:
            blocks = False  # Each device has a part of the batch.
        if blocks != self._in_blocks[function]:
            self._in_blocks[function] = blocks
            setattr(self, f"{function}_function", None)  # To be traced anew.
