"""What every layer has in common that takes a task beside its inputs."""

import functools
import inspect
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp._core import private
from keras_psp._core import scope
from keras_psp._core.task import Task
from keras_psp._core.task import task_argument
from keras_psp._core.task_index import Removed
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import check_task_index

if TYPE_CHECKING:
    from typing import Any as KerasLayer  # What stands behind the mixin.
else:
    KerasLayer = object


class TaskLayer(KerasLayer):
    """Mixin of the layers that are called with a task beside their inputs.

    It stands before a Keras layer among the bases, and knows `num_tasks`. `call()`
    makes a `Task` of the `task` that it is given.
    """

    # Whether it stands in a block whose code knows no task, and calls it as the Keras
    # layer that stood there before.
    in_block = False
    _removed_tasks: Removed = ()

    @property
    def task_names(self) -> TaskNames | None:
        """The names of the tasks, if the layer's model has given them any."""
        return vars(self).get("_task_names")

    @property
    def removed_tasks(self) -> Removed:
        """The indices of tasks that were removed and have not been given out again."""
        return self._removed_tasks

    @removed_tasks.setter
    def removed_tasks(self, removed: Iterable[int]) -> None:
        self._removed_tasks = tuple(sorted(set(removed)))

    def mark_removed(self, index: int) -> int:
        """Counts a task among `removed_tasks`, and returns its index, checked.

        Raises:
            TypeError: `index` is no integer.
            ValueError: There is no such task.
        """
        index = check_task_index(index, self.num_tasks, self.removed_tasks)
        self.removed_tasks = (*self.removed_tasks, index)
        return index

    def mark_reused(self, index: int) -> None:
        """Counts a task no longer among `removed_tasks`.

        Raises:
            ValueError: It was not removed: it would lose what it has.
        """
        if index not in self.removed_tasks:
            raise ValueError(
                "`task` must be one that was removed, of "
                f"{list(self.removed_tasks)}. Received: task={index!r}"
            )
        self.removed_tasks = [k for k in self.removed_tasks if k != index]

    # In the config alone: Keras' `clone_model()` makes layers of their configs and a
    # model of these, and asks the model for nothing.

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.removed_tasks:
            config["removed_tasks"] = list(self.removed_tasks)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Self:
        config = dict(config)
        removed = config.pop("removed_tasks", ())
        layer = super().from_config(config, *args, **kwargs)
        for each in (layer, *task_layers_in(layer)):
            each.removed_tasks = removed
        return layer

    def as_task(self, given: Any, inputs: Any = None) -> Task:
        """Returns the `Task` of a call, of the tasks that the layer has."""
        if given is None or scope.is_scoped(given):
            scope.check_reaches(self)
        return Task(given, self.num_tasks, inputs, self.task_names, self.removed_tasks)

    def __call__(self, inputs: Any, task: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.in_block:
            kwargs |= self._by_name(task, *args)
            task = scope.FROM_SCOPE
            if is_for_all(inputs):
                inputs = self._for_each(inputs)
        elif args:
            raise TypeError(
                "Arguments behind the task must be given by name. "
                f"Received: {self.name!r}, called with {args} behind it"
            )
        else:
            task = task_argument(task, self, inputs)
        # Of the Keras layer that stands behind this mixin.
        return super().__call__(inputs, task=task, **kwargs)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the call that computes again for gradients, as Keras does.

        On JAX that hands on arrays alone, and what stands for the scope's task is none.
        On torch the scope has ended by then.
        """
        task = kwargs.get("task")
        if not scope.is_scoped(task):
            return super().rematerialized_call(layer_call, *args, **kwargs)
        del kwargs["task"]
        bound = scope.keeping(functools.partial(layer_call, task=task))
        again = super().rematerialized_call(bound, *args, **kwargs)
        return lambda *args, task, **kwargs: again(*args, **kwargs)

    def _by_name(self, *args: Any) -> dict[str, Any]:
        """Returns what a block calls the layer with behind the inputs, by name."""
        if all(each is None for each in args):
            return {}  # As most blocks do, at each call on torch.
        names = list(inspect.signature(self.call).parameters)[2:]  # Without the task.
        if any(each is not None for each in args[len(names) :]):
            raise TypeError(
                f"{self.name!r} takes {names} behind its inputs. Received: {args}"
            )
        named = zip(names, args, strict=False)
        return {name: value for name, value in named if value is not None}

    def _for_each(self, inputs: Any) -> Any:
        """Repeats what is for all examples, where each has a task of its own."""
        task = scope.current(None, self.num_tasks, self.task_names, self.removed_tasks)
        if len(getattr(task, "shape", ())) == 0:
            return inputs
        return ops.repeat(inputs, ops.shape(task)[0], axis=0)


def is_for_all(inputs: Any) -> bool:
    """Whether a block calls a layer on one entry for all examples, of any number."""
    shape: Any = getattr(inputs, "shape", ())
    return len(shape) > 1 and shape[0] == 1


def task_layers_in(layer: keras.layers.Layer) -> Iterator[TaskLayer]:
    """Yields the layers that take a task, those inside such layers too."""
    for child in private.children(layer):
        if isinstance(child, TaskLayer):
            yield child
        yield from task_layers_in(child)


def find_task_layers(model: keras.layers.Layer) -> list:
    """Returns the layers that take a task, wherever they stand in a model.

    In its models, blocks and wrappers too; each once, in their order. Of attention it
    is the attention itself, not its projections.
    """
    found: dict = {}

    def visit(layer: keras.layers.Layer) -> None:
        for child in private.children(layer):
            if id(child) in found:
                continue
            found[id(child)] = child
            if not isinstance(child, TaskLayer):
                visit(child)

    visit(model)
    return [layer for layer in found.values() if isinstance(layer, TaskLayer)]
