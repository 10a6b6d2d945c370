"""A model of many independent ones, which are trained together as if alone."""

import inspect
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp._core import private
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
    """A `TaskModel` that trains each task as if it were alone.

    `keras_psp.stack()` makes it. No layer shares a weight between tasks. In training,
    the loss is each task's own mean, summed over the tasks in the batch:

    ```
    L = sum_k 1 / n_k sum_(i of task k) w_i l_i,   n_k examples with a weight w_i != 0
    ```

    The gradient by a task's weights is thus that of its own loss, whichever other tasks
    are in the batch. A place of an example counts if it is not masked and the loss does
    not ignore its label. With a `keras_psp.optimizers.PerTask` around the
    optimizer, the weights are those of the task trained alone on the same batches. The
    `"loss"` that `fit()` shows is this sum; divide by the number of tasks for a mean.
    `evaluate()` and `"val_loss"` give Keras' mean over the examples, without padding.

    `fit()` takes any batches. Those of `keras_psp.models.TaskBatches` are by far the
    fastest: they hold all tasks in order, so that each layer is one product of all
    kernels with the batch.

    A task that `add_tasks()` adds begins with fresh initial weights. A layer that is
    kept as copies (see `keras_psp.stack()`) begins with those that the model was made
    of.

    Args:
        inputs: Dictionary of symbolic inputs; `"task"` of an integer dtype.
        outputs: Symbolic outputs, in any structure, of numbers.
        **kwargs: `keras.Model` arguments.

    Raises:
        ValueError: See `TaskModel`. In `fit()` and `train_on_batch()`: a loss has
            another reduction than `"sum_over_batch_size"`, layers add losses of their
            own, or `TaskBatches` are of another number of tasks.

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
        # Of the batches that the loss is measured on: all places, by examples in them.
        self._padding = 1.0

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
        """Returns the loss: in training the sum of each task's own mean.

        Raises:
            ValueError: In training, layers add losses of their own.
        """
        regularizers = [v.regularizer for v in self.trainable_variables]
        if training and len(self.losses) > len([r for r in regularizers if r]):
            raise ValueError(
                "A stacked model cannot be trained with losses that layers add, by "
                "`add_loss()` or `activity_regularizer`: they are of all tasks' "
                f"examples together. Received: {self.name!r}, with such losses"
            )
        sample_weight = self._weights(x, y, y_pred, sample_weight, training)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def add_tasks(self, n: int | Sequence[str]) -> Self:
        new = self.next_tasks(check_num_tasks(n, "n")[0])
        super().add_tasks(n)
        with self.weights_moved():
            for layer in self._task_layers():
                if isinstance(layer, TaskRows) and not isinstance(layer, TaskCopies):
                    layer.draw_rows(new)
        return self

    def _weights(self, x, y, y_pred, given, training):
        """Returns the weights with which Keras' mean is the loss that is wanted."""
        if given is None and not training:
            return None
        task = Task(self._task_in(x), self.num_tasks)
        outputs = keras.tree.flatten(y_pred)
        weights = [given] if given is None else keras.tree.flatten(given)
        labels, losses = keras.tree.flatten(y), self._losses_of(y_pred)
        if len(weights) == 1:
            weights = weights * len(outputs)
        if len(labels) != len(outputs):  # Some outputs have no loss.
            labels = [None] * len(outputs)
        found = []
        for loss, label, output, weight in zip(
            losses, labels, outputs, weights, strict=True
        ):
            (counted,) = self._counted(task, weight)
            there = _find_places(loss, label, output)
            if training:
                places = ops.reshape(there, (ops.shape(there)[0], -1))
                places = ops.mean(places, axis=1)
                numbers = task.sum_by_task(places * counted)
                numbers = ops.where(ops.equal(numbers, 0), 1.0, numbers)
                scale = ops.sum(places) / task.rows(numbers, counted)
            else:
                scale = ops.full_like(counted, self._padding)
            if weight is not None:
                weight = ops.convert_to_tensor(weight, counted.dtype)
                scale = _of_rank(scale, weight) * weight
            found.append(_of_rank(scale, there) * ops.ones_like(there))
        return keras.tree.pack_sequence_as(y_pred, found)

    def _losses_of(self, y_pred):
        """Returns the loss of each output, or `None`."""
        losses = self.loss
        if isinstance(losses, dict):
            names = sorted(y_pred) if isinstance(y_pred, dict) else self.output_names
            losses = [losses.get(name) for name in names]
        losses = keras.tree.flatten(losses)
        if len(losses) == 1:
            losses = losses * len(keras.tree.flatten(y_pred))
        return losses

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
        padding = self._padding
        if function == "test":
            padding = data.padding if blocks else 1.0
        if blocks:
            data.check_model(self)
        strategy = getattr(self, "distribute_strategy", None)
        if getattr(strategy, "num_replicas_in_sync", 1) > 1:
            blocks = False  # Each device has a part of the batch.
        if (blocks, padding) != (self._in_blocks[function], self._padding):
            self._in_blocks[function], self._padding = blocks, padding
            setattr(self, f"{function}_function", None)  # To be traced anew.


def _find_places(loss, labels, output):
    """Returns which places of an output have a loss: 1 and 0, of the losses' shape."""
    shape = ops.shape(output)[:-1] or ops.shape(output)
    if _is_users_own(loss) and labels is not None:
        function = getattr(loss, "call", loss)
        shape = ops.shape(function(ops.cast(labels, output.dtype), output))
    there = ops.ones(shape)
    mask, ignored = private.mask_of(output), getattr(loss, "ignore_class", None)
    if mask is not None and len(mask.shape) == len(shape):
        there = there * ops.cast(mask, there.dtype)
    if ignored is not None and labels is not None:
        counts = ops.not_equal(labels, ops.cast(ignored, labels.dtype))
        there = there * ops.reshape(ops.cast(counts, there.dtype), shape)
    return there


def _is_users_own(loss):
    kind = loss if inspect.isfunction(loss) else type(loss)
    return callable(loss) and not kind.__module__.startswith("keras.")


def _of_rank(tensor, like):
    """Returns a tensor with as many dimensions as another one, or its own if more."""
    more = (1,) * (len(like.shape) - len(tensor.shape))
    return ops.reshape(tensor, (*ops.shape(tensor), *more))
