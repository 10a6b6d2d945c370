"""An optimizer that lets the weights of absent tasks stand still."""

import contextlib
import contextvars
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core import private
from keras_psp._core.backend import gradient as gradient_of
from keras_psp._core.checks import check_number
from keras_psp._core.distribution import count_replicas
from keras_psp._core.task_index import check_task
from keras_psp._core.task_rows import is_task_rows
from keras_psp.optimizers._around import Around
from keras_psp.optimizers._around import chain_of

# Optimizers that divide their moments by how much of them there can be after so many
# steps, and whose `update_step()` takes a number of steps for each row.
_BIAS_CORRECTED = (
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Lamb,
    keras.optimizers.ScheduleFreeAdamW,
)
# Of a sum of two numbers, what may be rounded off.
_EPSILON = {"float64": 2.0**-49, "float32": 2.0**-20, "float16": 2.0**-7}

_present: contextvars.ContextVar[Any] = contextvars.ContextVar("present", default=None)


@contextlib.contextmanager
def tell_present(present: Any) -> Iterator[None]:
    """Tells `PerTask` which tasks have examples in the batch, without gradients.

    Args:
        present: Boolean tensor of shape `(num_tasks,)`.
    """
    token = _present.set(present)
    try:
        yield
    finally:
        _present.reset(token)


@keras.saving.register_keras_serializable(package="keras_psp")
class PerTask(Around):
    """An optimizer that trains a task's own weights only on the task's own examples.

    Layers such as `TaskDense` hold weights of shape `(num_tasks, ...)`, a row for each
    task. A plain optimizer also moves the rows of tasks that have no example in the
    batch: momentum and Adam's moments carry them on, and weight decay and regularizers
    shrink them step by step. With `PerTask` these rows stand still, and so do the
    moments that the optimizer keeps for them. A row is trained as if no other task
    existed:

    - Adam, AdamW, Adamax, Lamb and ScheduleFreeAdamW count the steps of each row apart,
      for their bias correction. A learning rate schedule follows the steps of the whole
      model, and so do the momentum and bias correction of Nadam.
    - An average of the weights (`use_ema=True`) begins at a row's first step.
    - With `gradient_accumulation_steps` a row is in a step if its task had an example
      in any of the accumulated batches.
    - Lamb, Adafactor and Muon scale a step by the size of the whole weight, and
      `clipnorm` and `global_clipnorm` by that of the whole gradient, which the rows of
      all tasks are part of.

    Weights that all tasks share are trained as they are without `PerTask`, at the same
    cost.

    A task is absent if its row of the gradient is zero, apart from the gradient of the
    weight's own regularizer. The row of a task whose examples have no gradient at all
    stands still too, but in a `keras_psp.models.StackedModel`, which tells which tasks
    have examples. Losses that a model adds with `add_loss()` for the weights of all
    tasks train all tasks.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
            It may be a consolidation or a `LossScaleOptimizer`, and `PerTask` may
            stand inside one.
        name: Name of the optimizer.
        rates: How many times the learning rate each task takes: a list of non-negative
            numbers, or one for all; `set_rates()` changes them. A task of rate 0 stands
            still as if it had no examples. They scale the steps of a task's own
            weights. Or `None`: all take the learning rate as it is, which cannot be
            changed for a task, and costs nothing.

    Raises:
        TypeError: `rates` holds something else than numbers.
        ValueError: There is no such optimizer, or it is a `MultiOptimizer`, in which
            each optimizer may be a `PerTask`; a rate is negative or not finite. When
            it is built: there are more or fewer rates than tasks.

    Example:

    >>> import keras, keras_psp
    >>> image = keras.Input((4,), name="image")
    >>> task = keras.Input((), dtype="int32", name="task")
    >>> head = keras_psp.layers.TaskDense(3, num_tasks=2)
    >>> inputs = {"image": image, "task": task}
    >>> model = keras_psp.models.TaskModel(inputs, head(image, task))
    >>> model.compile(keras_psp.optimizers.PerTask("adam"), "mse")
    >>> x, y = keras.ops.ones((8, 4)), keras.ops.ones((8, 3))
    >>> history = model.fit(
    ...     {"image": x, "task": keras.ops.zeros((8,), "int32")}, y, verbose=0
    ... )
    >>> before = keras.ops.convert_to_numpy(head.kernel)[0]
    >>> history = model.fit(
    ...     {"image": x, "task": keras.ops.ones((8,), "int32")}, y, verbose=0
    ... )
    >>> bool((keras.ops.convert_to_numpy(head.kernel)[0] == before).all())
    True
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str" = "rmsprop",
        name: str | None = "per_task",
        rates: Sequence[float] | np.ndarray | float | None = None,
    ) -> None:
        super().__init__(optimizer, name)
        if isinstance(self._innermost, keras.optimizers.MultiOptimizer):
            raise ValueError(
                "`PerTask` stands inside a `MultiOptimizer`, around each of its "
                f"optimizers. Received: optimizer={optimizer!r}"
            )
        self.rates_given: Any = None
        if isinstance(rates, (Sequence, np.ndarray)):
            self.rates_given = [check_number("rates", rate) for rate in rates]
        elif rates is not None:
            self.rates_given = check_number("rates", rates)

    def add_own_variables(self, variables: list) -> None:
        """Adds, for each weight with rows, how many steps each row has taken."""
        self.steps = self._add_counters(variables, "steps")
        # After tasks were added or removed, `carry_over()` gives each its rate.
        if isinstance(self.rates_given, list) and not hasattr(self, "rates"):
            for rows in {v.shape[0] for v in variables if is_task_rows(v)}:
                self._check_number(self.rates_given, rows)
        self.rates: Any = None
        if self.rates_given is not None:
            self.rates = self._add_counters(variables, "rates", self._first_rates)
        self.waiting: Any = None
        if self._accumulates:
            # Which rows have had examples since the last step.
            self.waiting = self._add_counters(variables, "waiting")

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step, and puts the rows of absent tasks back."""
        if count_replicas() > 1:
            raise NotImplementedError(
                "PerTask does not train under several replicas of `tf.distribute`."
            )
        masks, kept, grads = {}, [], list(grads)
        averages = private.moving_averages(self._innermost)
        for n, variable in enumerate(variables):
            i = self._get_variable_index(variable)
            if self.steps[i] is None:
                continue
            present = self.find_present(grads[n], variable)
            if grads[n] is not None:
                # No regularizer of an absent row shall have a part in clipping.
                grads[n] = select(present, grads[n], 0.0)
            if self._accumulates:
                present = ops.logical_or(present, ops.greater(self.waiting[i], 0))
            if self.rates is not None:
                present = ops.logical_and(present, ops.greater(self.rates[i], 0))
            masks[i] = present
            own = [
                v for v in self._slots(i) if averages is None or v is not averages[i]
            ]
            kept += [(present, v, ops.copy(v.value), None) for v in own]
            rate = None if self.rates is None else self.rates[i]
            kept.append((present, variable, ops.copy(variable.value), rate))
            if averages is not None:
                begun = ops.greater(self.steps[i], 0)
                kept.append((present, averages[i], ops.copy(averages[i].value), None))
                kept.append((begun, averages[i], variable, None))
        before = ops.copy(ops.convert_to_tensor(self.iterations))
        with self._counting(masks):
            self.step_other(grads, variables)
        for mask, variable, old, rate in kept:
            new = ops.convert_to_tensor(variable)
            if rate is not None:
                rate = align(ops.cast(rate, new.dtype), new)
                scaled = ops.add(old, ops.multiply(rate, ops.subtract(new, old)))
                new = ops.where(ops.equal(rate, 1), new, scaled)
            variable.assign(select(mask, new, old))
        stepped = ops.not_equal(before, self.iterations)
        for i, present in masks.items():
            one = ops.cast(ops.logical_and(present, stepped), "int32")
            self.steps[i].assign_add(one)
            if self._accumulates:
                waits = ops.logical_and(present, ops.logical_not(stepped))
                self.waiting[i].assign(ops.cast(waits, "int32"))

    def set_rates(
        self, rates: Sequence[float] | np.ndarray | Mapping[int, float] | float
    ) -> None:
        """Sets how many times the learning rate each task takes.

        Args:
            rates: A non-negative number for all tasks, a list with one for each, or a
                dictionary of those to be changed by the tasks' indices.

        Raises:
            TypeError: `rates` holds something else than numbers.
            ValueError: The optimizer was made without `rates`, or is not built; a rate
                is negative; there are more or fewer than tasks, or no such task.
        """
        if self.rates_given is None or not self.built:
            raise ValueError(
                "Rates can be set where the optimizer was made with some, as "
                "`PerTask(optimizer, rates=1.0)`, and is built. Received: "
                f"rates={rates!r}"
            )
        now = self.task_rates
        if isinstance(rates, Mapping):
            changed = now.copy()
            for task, rate in rates.items():
                changed[check_task(task, len(now))] = check_number("rates", rate)
        elif isinstance(rates, (Sequence, np.ndarray)):
            changed = np.array([check_number("rates", rate) for rate in rates])
            self._check_number(changed, len(now))
        else:
            changed = np.full(len(now), check_number("rates", rates))
        for each in self.rates:
            if each is not None:
                each.assign(changed)

    @property
    def task_rates(self) -> np.ndarray:
        """How many times the learning rate each task takes, `(num_tasks,)`."""
        for each in self.rates or ():
            if each is not None:
                return ops.convert_to_numpy(each)
        raise ValueError(f"{self.name!r} has no rates, or no task has weights.")

    def carry_over(self, old: dict[str, Any], origins: list, rows: list) -> None:
        """Keeps the rates of the tasks that there are as the argument."""
        if isinstance(self.rates_given, list):
            self.rates_given = self.task_rates.tolist()

    def _check_number(self, rates: Any, number: int) -> None:
        if len(rates) != number:
            raise ValueError(
                f"`rates` must hold one number for each of {number} tasks. Received: "
                f"{len(rates)}"
            )

    def _first_rates(self, shape: tuple, dtype: Any = None) -> Any:
        rates = np.ones(shape, "float32")  # Of tasks that came later.
        if isinstance(self.rates_given, list):
            given = self.rates_given[: len(rates)]
            rates[: len(given)] = given
        else:
            rates[:] = self.rates_given
        return ops.convert_to_tensor(rates, dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments; rates that were set since are among the variables."""
        rates = self.rates_given
        return super().get_config() | ({} if rates is None else {"rates": rates})

    def find_present(self, gradient: Any, variable: Any) -> Any:
        """Returns which rows' tasks have an example in the batch.

        Args:
            gradient: The gradient of the loss by the variable, or `None`.
            variable: A variable with a row for each task.

        Returns:
            Boolean tensor of shape `(num_tasks,)`.
        """
        rows = variable.shape[0]
        present = _present.get()
        if present is not None:
            return present
        if gradient is None:
            return ops.zeros((rows,), "bool")
        gradient = ops.reshape(ops.convert_to_tensor(gradient), (rows, -1))
        if variable.regularizer is None:
            return ops.any(ops.not_equal(gradient, 0), axis=1)
        # What remains of an absent row without its regularizer is a rounding error.
        own = gradient_of(
            lambda value: self.scale_loss(variable.regularizer(value)),
            ops.copy(variable.value),
        )
        own = ops.cast(ops.reshape(own, (rows, -1)), gradient.dtype)
        size = ops.max(ops.abs(own), axis=1, keepdims=True)
        dtype = keras.backend.standardize_dtype(gradient.dtype)
        error = ops.multiply(size, _EPSILON.get(dtype, 2.0**-4))
        apart = ops.abs(ops.subtract(gradient, own))
        # Not greater: of NaN there is neither, and its task has an example.
        return ops.any(ops.logical_not(ops.less_equal(apart, error)), axis=1)

    def _add_counters(
        self, variables: list, name: str, initializer: Any = "zeros"
    ) -> list:
        dtype = "int32" if initializer == "zeros" else "float32"
        return [
            self.add_variable((v.shape[0],), initializer, dtype=dtype, name=name)
            if is_task_rows(v)
            else None
            for v in variables
        ]

    @property
    def _innermost(self) -> Any:
        return chain_of(self)[-1]

    @property
    def _accumulates(self) -> int | None:
        return self._innermost.gradient_accumulation_steps

    def _slots(self, i: int) -> list:
        """What the innermost optimizer keeps for the rows of weight `i`."""
        variable = self._trainable_variables[i]
        shape = tuple(variable.shape)
        slots = [
            each[i]
            for name, each in private.find_slots(self._innermost).items()
            if not private.sums_over_rows(self._innermost, name, variable)
        ]
        return [
            each
            for each in slots
            if each is not None
            and tuple(each.shape) in (shape, shape[:-1], (*shape[:-2], shape[-1]))
            and tuple(each.shape)[:1] == shape[:1]
        ]

    def _counting(self, masks: dict[int, Any]) -> Any:
        """In it, rows that are present have their own numbers of steps."""
        if not masks or not isinstance(self._innermost, _BIAS_CORRECTED):
            return contextlib.nullcontext()

        steps = {}
        for i in masks:
            rank = len(self._trainable_variables[i].shape)
            own = ops.reshape(self.steps[i], (-1,) + (1,) * (rank - 1))
            steps[i] = ops.multiply(own, self._accumulates or 1)
        return private.own_iterations(self._innermost, steps.get)


def select(mask: Any, new: Any, old: Any) -> Any:
    """Returns the rows of `new` where the mask is true, and those of `old` elsewhere.

    Args:
        mask: Boolean tensor of shape `(num_tasks,)`.
        new: Tensor of shape `(num_tasks, ...)`.
        old: Tensor like `new`, or a number.
    """
    new = ops.convert_to_tensor(new)
    return ops.where(align(mask, new), new, ops.cast(old, new.dtype))


def align(each: Any, like: Any) -> Any:
    """Returns something of each task, `(num_tasks,)`, shaped to broadcast."""
    return ops.reshape(each, (-1,) + (1,) * (len(like.shape) - 1))
