"""What a layer does whose children hold the tasks, when tasks come and go."""

from typing import Self

from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_integer
from keras_psp._core.task_layer import TaskLayer


class TaskParts(TaskLayer):
    """Mixin of the layers that have a `context`, or `None`, and other parts by task.

    They set `_num_tasks` for where there is no context to ask.
    """

    @property
    def num_tasks(self) -> int:
        """How many tasks the layer holds."""
        return self._num_tasks if self.context is None else self.context.num_tasks

    # A method: Keras would visit what a property holds, for a second time, and load a
    # context without weights from nothing.
    def other_parts(self) -> list:
        """Returns what holds tasks beside the context."""
        raise NotImplementedError

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if a context cannot hold `num_tasks`."""
        raise NotImplementedError

    def add_tasks(self, n: int) -> Self:
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        See `Context.add_tasks()`; it returns the layer itself.
        """
        n = check_integer("n", n)
        self.check_can_hold(self.num_tasks + n)
        if self.context is None:
            self._num_tasks += n
        for part in self._parts_by_task():
            part.add_tasks(n)
        return self

    def remove_tasks(self, *, n: int) -> Self:
        """Removes the last `n` tasks; the others stay exactly as they are.

        See `Context.remove_tasks()`; it returns the layer itself.
        """
        n = check_fewer_tasks(n, self.num_tasks)
        if self.context is None:
            self._num_tasks -= n
        for part in self._parts_by_task():
            part.remove_tasks(n=n)
        self.removed_tasks = [k for k in self.removed_tasks if k < self.num_tasks]
        return self

    def remove_task(self, index: int) -> Self:
        """Takes from a task what it has of its own, its context too.

        See `TaskRows.remove_task()`; it returns the layer itself.
        """
        index = self.mark_removed(index)
        for part in self._parts_by_task():
            part.remove_task(index)
        return self

    def reuse_task(self, index: int) -> Self:
        """Gives the index of a task that was removed what a new task has.

        See `Context.reuse_task()`; it returns the layer itself.
        """
        self.mark_reused(index)
        for part in self._parts_by_task():
            part.reuse_task(index)
        return self

    def _parts_by_task(self):
        context = [] if self.context is None else [self.context]
        return [*context, *self.other_parts()]
