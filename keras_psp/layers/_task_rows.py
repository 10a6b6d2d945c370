"""What all layers share that keep weights of its own for each task."""

from typing import Any
from typing import Self

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_integer
from keras_psp._core.initial import Initial
from keras_psp._core.private import replace_weight
from keras_psp._core.task import Task
from keras_psp._core.task_layer import TaskLayer
from keras_psp._core.task_rows import mark_task_rows
from keras_psp.layers._draw_each import draw_each

NEW_ROW = "new_row."  # Before the name of an attribute, in files.


class TaskRows(TaskLayer):
    """Mixin of the layers with weights that have a row for each task.

    It stands before a Keras layer among the bases. `__init__` calls `set_num_tasks()`,
    `build()` makes the weights by `add_rows()`, and `call()` begins with
    `parse_task()`.
    """

    def set_num_tasks(self, num_tasks: int) -> None:
        """Checks and keeps the number of tasks."""
        self.num_tasks = check_integer("num_tasks", num_tasks)
        self._rows: dict[str, tuple] = {}
        self._new_rows: dict[str, np.ndarray] = {}
        self._initializers: dict[str, Any] = {}

    def add_rows(
        self,
        attribute: str,
        shape: Any,
        initializer: Any,
        name: str | None = None,
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        """Adds a weight of shape `(num_tasks, *shape)` as the layer's `attribute`.

        Initializer, regularizer and constraint see one task's row at a time, as they
        would see the weight of a plain layer. All tasks start alike.
        """

        def rows(number, dtype):
            # With the backend's operations alone: a layer may be built in a trace.
            row = self._new_rows.get(attribute)
            if row is None:
                row = initializer(shape, dtype=dtype)
            row = ops.convert_to_tensor(row, dtype)
            return ops.tile(ops.expand_dims(row, 0), (number, *(1 for _ in shape)))

        def add(values=None):
            def initial(full_shape, dtype):
                if values is None:
                    return rows(full_shape[0], dtype)
                return ops.convert_to_tensor(values, dtype)

            weight = self.add_weight(
                name=name or attribute,
                shape=(self.num_tasks, *shape),
                initializer=Initial(initial),
                regularizer=regularizer and _sum_of(regularizer),
                constraint=constraint and _each(constraint),
                **kwargs,
            )
            setattr(self, attribute, mark_task_rows(weight))

        add()
        self._rows[attribute] = rows, add
        self._initializers[attribute] = initializer

    def draw_rows(self, tasks: list[int] | None = None) -> None:
        """Gives tasks, by default all, initial weights of their own.

        They are drawn by the initializers, which see the shape of one task's row.
        """
        for attribute, initializer in self._initializers.items():
            weight = getattr(self, attribute)
            number = weight.shape[0] if tasks is None else len(tasks)
            drawn = draw_each(
                initializer, number, tuple(weight.shape[1:]), weight.dtype
            )
            if tasks is not None:
                rows = np.array(ops.convert_to_numpy(weight))
                rows[tasks] = ops.convert_to_numpy(drawn)
                drawn = rows
            weight.assign(drawn)

    def set_new_row(self, weight: Any, row: Any) -> None:
        """Sets what a task that is added later begins with, in place of initial values.

        It is no weight: it is not trained, and `get_weights()` does not return it. It
        is saved with the weights, in files that hold none it stays as it is.

        Args:
            weight: One of `task_weights`.
            row: NumPy array of the shape of one task's row.
        """
        for attribute in self._rows:
            if getattr(self, attribute) is weight:
                self._new_rows[attribute] = row.copy()

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for attribute, row in self._new_rows.items():
            store[NEW_ROW + attribute] = row

    def load_own_variables(self, store: Any) -> None:
        values = {name: store[name] for name in store.keys()}
        for name in [name for name in values if name.startswith(NEW_ROW)]:
            row = np.array(values.pop(name))
            self._new_rows[name.removeprefix(NEW_ROW)] = row
        super().load_own_variables(values)

    @property
    def task_weights(self) -> list:
        """The weights that have a row for each task."""
        return [getattr(self, attribute) for attribute in self._rows]

    @property
    def plain_weights(self) -> list:
        """What stands for the weights of Keras' layer, with a row for each task."""
        return self.task_weights

    def add_tasks(self, n: int) -> Self:
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        See `Context.add_tasks()`; it returns the layer itself.
        """
        n = check_integer("n", n)
        self.num_tasks += n
        self._replace_rows(
            lambda old, rows: np.concatenate(
                [old, ops.convert_to_numpy(rows(n, old.dtype.name))]
            )
        )
        return self

    def remove_tasks(self, *, n: int) -> Self:
        """Removes the last `n` tasks; the others stay exactly as they are.

        See `Context.remove_tasks()`; it returns the layer itself.
        """
        self.num_tasks -= check_fewer_tasks(n, self.num_tasks)
        self.removed_tasks = [k for k in self.removed_tasks if k < self.num_tasks]
        self._replace_rows(lambda old, rows: old[: self.num_tasks])
        return self

    def remove_task(self, index: int) -> Self:
        """Makes the rows of a task zero, which answers nothing from then on.

        A model that contains the layer must be told: see `TaskModel.remove_task()`. It
        returns the layer itself.
        """
        index = self.mark_removed(index)
        self._replace_rows(lambda old, rows: _with_row(old, index, 0))
        return self

    def reuse_task(self, index: int) -> Self:
        """Gives the index of a task that was removed the rows of a new task.

        It returns the layer itself.
        """
        self.mark_reused(index)

        def change(old: np.ndarray, rows: Any) -> np.ndarray:
            new = ops.convert_to_numpy(rows(1, old.dtype.name))
            return _with_row(old, index, new[0])

        self._replace_rows(change)
        return self

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises nothing: the layer can hold any number of tasks."""

    def can_quantize(self, mode: Any) -> bool:
        """Whether nothing of the layer is left out if a model is quantized."""
        return not any("kernel" in attribute for attribute in self._rows)

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Leaves scales, biases and statistics as they are; refuses kernels."""
        if not self.can_quantize(mode):
            raise NotImplementedError(
                f"A {type(self).__name__} cannot be quantized. Received: {self.name!r}"
            )

    def parse_task(self, task: Any, inputs: Any) -> Task:
        """Returns the `Task` of a call, which must hold indices."""
        task = self.as_task(task, inputs)
        if task.is_soft:
            raise TypeError(
                f"A {type(self).__name__} has no contexts that could be mixed: `task` "
                "must be one index for each example. Received: task of dtype "
                f"{task.index.dtype} and shape {tuple(task.index.shape)}"
            )
        return task

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_tasks": self.num_tasks}

    def _replace_rows(self, change):
        for attribute, (rows, add) in self._rows.items():
            old = getattr(self, attribute)
            values = change(ops.convert_to_numpy(old), rows)
            trainable = old.trainable
            replace_weight(self, old, lambda add=add, values=values: add(values))
            getattr(self, attribute).trainable = trainable


def _with_row(bank, index, row):
    bank = bank.copy()
    bank[index] = row
    return bank


# Which add up what they make of each number.
_OF_NUMBERS = (
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
)

# Row by row, for not every function of a matrix can be vectorized on every backend.


def _each(constraint):
    if type(constraint) is keras.constraints.NonNeg:  # Which sees each number alone.
        return constraint
    return lambda weight: ops.stack(
        [constraint(weight[k]) for k in range(weight.shape[0])]
    )


def _sum_of(regularizer):
    if type(regularizer) in _OF_NUMBERS:
        return regularizer
    return lambda weight: sum(regularizer(weight[k]) for k in range(weight.shape[0]))
