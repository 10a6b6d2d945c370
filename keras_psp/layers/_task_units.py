"""A dense layer whose tasks have different numbers of outputs."""

from collections.abc import Sequence
from typing import Any
from typing import Self

import numpy as np
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._core.task import Task
from keras_psp._core.task_layer import TaskLayer

# What an activation may make of an output that a task does not have.
_NOTHING = (0.0, float("-inf"))


class TaskUnits(TaskLayer):
    """Mixin of the dense layers whose first outputs alone may be a task's own.

    It stands before a `keras.layers.Dense` with tasks among the bases. `__init__` calls
    `set_units_per_task()`, and `call()` calls `cut_outputs()` before the activation.
    """

    units: int
    activation: Any
    name: Any

    def set_units_per_task(self, units_per_task: Sequence[int] | None) -> None:
        """Checks and keeps how many outputs each task has, or `None` for all."""
        self.units_per_task: list[int] | None = None
        if units_per_task is None:
            return
        if not isinstance(units_per_task, (list, tuple)):
            raise TypeError(
                "`units_per_task` must be a list of integers, or `None`. Received: "
                f"units_per_task={units_per_task!r}"
            )
        found = [check_integer("units_per_task", each) for each in units_per_task]
        if len(found) != self.num_tasks or max(found) > self.units:
            raise ValueError(
                f"`units_per_task` must hold {self.num_tasks} integers, one for each "
                f"task, of at most `units`={self.units}. Received: "
                f"units_per_task={units_per_task!r}"
            )
        if not can_cut(self.activation):
            raise ValueError(
                "Tasks can have other numbers of outputs if these go through no "
                "activation, a softmax, a sigmoid or a relu. Received: "
                f"{self.name!r} with activation={self.activation!r}"
            )
        self.units_per_task = found

    def units_of(self, task: int) -> int:
        """Returns how many outputs a task has."""
        return self.units if self.units_per_task is None else self.units_per_task[task]

    def cut_outputs(self, outputs: Any, task: Task) -> Any:
        """Makes the outputs that an example's task does not have `-inf`.

        Args:
            outputs: Float tensor of shape `(batch, ..., units)`, before the activation.
            task: The `Task` of the call.
        """
        if self.units_per_task is None:
            return outputs
        bank = np.arange(self.units) < np.array(self.units_per_task)[:, None]
        bank = ops.convert_to_tensor(bank.astype("float32"))
        has = ops.greater(task.rows(bank, outputs), 0)
        nothing = ops.cast(float("-inf"), outputs.dtype)
        return ops.where(has, outputs, nothing)

    def add_tasks(self, n: int) -> Self:
        super().add_tasks(n)
        if self.units_per_task is not None:
            self.units_per_task = [*self.units_per_task, *[self.units] * n]
        return self

    def remove_tasks(self, *, n: int) -> Self:
        super().remove_tasks(n=n)
        if self.units_per_task is not None:
            self.units_per_task = self.units_per_task[:-n]
        return self

    def reuse_task(self, index: int) -> Self:
        super().reuse_task(index)
        if self.units_per_task is not None:
            units = list(self.units_per_task)
            units[index] = self.units
            self.units_per_task = units
        return self

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.units_per_task is not None:
            config["units_per_task"] = list(self.units_per_task)
        return config


def can_cut(activation: Any) -> bool:
    """Whether an activation makes nothing of an output of `-inf`."""
    if activation is None:
        return True
    some = ops.convert_to_tensor([[0.0, float("-inf")]])
    return ops.convert_to_numpy(activation(some))[0, 1] in _NOTHING
