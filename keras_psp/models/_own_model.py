"""A model of a class of its own, such as KerasHub's, that takes a task."""

import weakref
from typing import Any
from typing import Literal

import keras
import numpy as np

from keras_psp._core import scope
from keras_psp._core.data import BesideInputs
from keras_psp._core.private import input_like
from keras_psp._core.task import mask_outputs
from keras_psp._core.task_index import as_index
from keras_psp._core.task_index import check_task_type
from keras_psp._core.task_index import named_index
from keras_psp.layers._block import Block
from keras_psp.models._takes_tasks import TakesTasks
from keras_psp.models.task_model import TaskModel


class OwnModel(TakesTasks, Block):
    """Mixin of the classes that such models take when they are converted.

    The model keeps its class, and all methods of it. The task comes from a scope,

    ```
    with keras_psp.task(3):
        model.predict(x)
    ```

    or stands beside the inputs: as `"task"` in a model's dictionary of inputs, or as
    `{"inputs": x, "task": task}` if it takes something else.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        task, args = self._split(args)
        task = named_index(task, self.task_names)
        if task is None:
            return super().__call__(*args, **kwargs)
        with scope.task(task):
            return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        self._note_caller()
        task, args = self._split(args)
        if task is None:  # Of `__call__()`, or of the caller.
            task = scope.tensor()
            outputs = super().call(*args, **kwargs)
        else:
            task = as_index(task)
            check_task_type(task, self.num_tasks)
            with scope.task(task):
                outputs = super().call(*args, **kwargs)
        if task is None:
            return outputs
        return mask_outputs(outputs, task, self.num_tasks, self.removed_tasks)

    def as_task_model(self) -> TaskModel:
        """Returns a `TaskModel` around this one, with its inputs by name and a task.

        Raises:
            ValueError: The model is not functional: its inputs are not known.
        """
        graph = getattr(self, "inputs", None)
        if graph is None:
            raise ValueError(
                "The model must be functional: of others, inputs and outputs are not "
                f"known. Received: {self.name!r}, a {self.original_class.__name__}"
            )
        named = self.input if isinstance(self.input, dict) else None
        named = named or {tensor.name: tensor for tensor in graph}
        inputs = {name: input_like(x, name) for name, x in named.items()}
        inputs["task"] = keras.Input((), dtype="int32", name="task")
        model = TaskModel(inputs, self(inputs), name=self.name)
        if self.task_names is not None:
            model.task_names = self.task_names
        model.class_names = self.class_names
        return model

    @property
    def _callers(self) -> weakref.WeakSet:
        """Models that have called this one."""
        return self.__dict__.setdefault("_called_by", weakref.WeakSet())

    def _split(self, args: tuple) -> tuple[Any, tuple]:
        """Returns the task that stands beside the inputs, and arguments without it."""
        task = self._task_in(args[0]) if args else None
        if task is None:
            return None, args
        return task, (self._without_task(args[0]), *args[1:])

    def _task_in(self, inputs: Any) -> Any:
        return inputs.get("task") if isinstance(inputs, dict) else None

    def _tasks_in(self, x: Any) -> set[int]:
        found, task = super()._tasks_in(x), scope.known()
        if found or task is None:
            return found
        return set(np.unique(named_index(task, self.task_names)).tolist())

    def _without_task(self, inputs: dict[str, Any]) -> Any:
        rest = {name: value for name, value in inputs.items() if name != "task"}
        if list(rest) == ["inputs"]:
            return rest["inputs"]
        graph = getattr(self, "inputs", None)  # Of a functional model.
        if graph is None or isinstance(self.input, dict):
            return rest
        names = [tensor.name for tensor in graph]
        if set(names) != set(rest):
            return rest
        values = [rest[name] for name in names]
        return values[0] if len(values) == 1 else values

    def _check(self, unknown: Literal["raise", "mark"]) -> BesideInputs:
        return BesideInputs(
            self.num_tasks, unknown, self.task_names, self.removed_tasks
        )

    def preprocess_samples(
        self, x: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        """Returns what KerasHub's own model makes of the examples, with their task."""
        task = self._task_in(x)
        if task is None:
            return super().preprocess_samples(x, y, sample_weight)
        given = super().preprocess_samples(self._without_task(x), y, sample_weight)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(given)
        x = {**(x if isinstance(x, dict) else {"inputs": x}), "task": task}
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


OwnModel._mixin = OwnModel
keras.saving.register_keras_serializable("keras_psp")(OwnModel)
