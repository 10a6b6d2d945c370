"""A task as a caller gives it, parsed and checked once for every layer."""

import contextlib
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core import scope
from keras_psp._core.backend import cond
from keras_psp._core.backend import holds_one_task
from keras_psp._core.backend import is_readable
from keras_psp._core.backend import remember_source
from keras_psp._core.backend import take_rows
from keras_psp._core.backend import to_numpy
from keras_psp._core.private import mask_of
from keras_psp._core.private import set_mask
from keras_psp._core.task_index import Removed
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import as_index
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import is_soft
from keras_psp._core.task_index import named_index


class _Expected(threading.local):
    in_blocks = False
    counted: Any = None
    there: Any = None


_expected = _Expected()  # No context variable, which `torch.compile` cannot trace.


@contextlib.contextmanager
def in_blocks(are: bool = True, counted: Any = None) -> Iterator[None]:
    """Says whether each batch holds all tasks in their order, as many examples of each.

    If so, layers multiply a whole bank of kernels with the batch, and look up none. An
    example that is not in the place of its task becomes NaN.

    Args:
        are: Whether the batches are so.
        counted: Boolean tensor `(batch,)`, which examples are more than padding; or
            `None`, if all are. Statistics are of these alone.
    """
    before = _expected.in_blocks, _expected.counted
    _expected.in_blocks, _expected.counted = are, counted
    try:
        yield
    finally:
        _expected.in_blocks, _expected.counted = before


@contextlib.contextmanager
def in_turn_of(there: Any) -> Iterator[None]:
    """Says whether a task, for which all is computed now, has examples in the batch.

    If not, layers gather no statistics of what stands in their place.

    Args:
        there: Boolean tensor of shape `()`, or `None` if it is not asked for.
    """
    before, _expected.there = _expected.there, there
    try:
        yield
    finally:
        _expected.there = before


class Task:
    """The task of a batch: one index for all, an index for each example, or weights.

    A layer makes it in `call()` of the `task` it was called with.

    Args:
        given: What `check_task()` returned; or `None` or `scope.FROM_SCOPE`, for the
            task of the scope that the layer runs in.
        num_tasks: Integer, the number of tasks.
        inputs: Tensor of shape `(batch, ...)`, the layer's inputs, or `None`.
        names: The names of the tasks in order, if they have any.
        removed: Indices of tasks that were removed.

    Attributes:
        index: An `int`; or an int32 tensor of shape `()` or `(batch,)`, clipped to
            `[0, num_tasks)` and so safe to look up; or, if `is_soft`, float weights of
            shape `(batch, num_tasks)`.
        known: `None` where every index is known to be a task; or else a boolean tensor
            like `index`, `False` where there is no such task.
        in_blocks: Whether it is known that the batch is made as in `in_blocks()`.
        counted: `None` where every example counts; or else a boolean tensor
            `(batch,)`, `False` for what is padding; or `()`, for all at once.

    Raises:
        ValueError: There are more or fewer indices than examples, or an index that can
            be read lies outside `[0, num_tasks)`.
    """

    def __init__(
        self,
        given: Any,
        num_tasks: int,
        inputs: Any = None,
        names: TaskNames | None = None,
        removed: Removed = (),
    ) -> None:
        # `None`: Keras' wrappers call a layer's `call()`, as if it took no task.
        if given is None or scope.is_scoped(given):
            given = scope.current_checked(inputs, num_tasks, names, removed)
        self.num_tasks, self.removed = num_tasks, removed
        self.index, self.known, self.in_blocks = given, None, False
        self.counted = None
        if isinstance(given, int):
            self.counted = _expected.there
            return
        readable = is_readable(given)
        if readable and not _expected.in_blocks:
            one = _only_task(given, inputs)
            if one is not None:
                self.index = one
                return
        task = ops.convert_to_tensor(given)
        soft = is_soft(task)
        if len(task.shape) == 2 and not soft:
            task = ops.squeeze(task, axis=1)
        if len(task.shape) > 0:
            batch, tasks = getattr(inputs, "shape", (None,))[0], task.shape[0]
            if isinstance(batch, int) and isinstance(tasks, int) and batch != tasks:
                raise ValueError(
                    "`task` must hold one index for each example. "
                    f"Received: {tasks} for inputs of shape {tuple(inputs.shape)}"
                )
            if isinstance(tasks, int) and tasks == 0 and not soft:
                self.index = 0  # Without examples, any task will do.
                return
        self.index = task
        if soft:
            return
        # Compared at 64 bits where it has them: 2**32 must not wrap round to task 0.
        # And at no less than 32: `num_tasks` need not fit into an int8.
        dtype = keras.backend.standardize_dtype(task.dtype)
        if dtype not in ("int32", "int64"):
            task = ops.cast(task, "int64" if dtype in ("uint64", "uint32") else "int32")
        self.in_blocks = _expected.in_blocks and len(task.shape) == 1
        self.counted = _expected.counted if len(task.shape) == 1 else None
        if self.in_blocks:
            size = ops.shape(task)[0]
            place = ops.arange(0, size, dtype="int32")
            self.index = ops.floor_divide(place, ops.maximum(size // num_tasks, 1))
            self.known = ops.equal(task, ops.cast(self.index, task.dtype))
        elif readable:
            self.index = ops.cast(task, "int32")
            return
        else:
            clipped = ops.clip(task, 0, num_tasks - 1)
            self.index = ops.cast(clipped, "int32")
            remember_source(self.index, given)
            self.known = ops.equal(clipped, task)
        if removed:
            gone = ops.cast(removed, task.dtype)
            others = ops.not_equal(ops.expand_dims(task, -1), gone)
            self.known = ops.logical_and(self.known, ops.all(others, axis=-1))

    @classmethod
    def of_index(cls, index: Any, num_tasks: int, known: Any = None) -> "Task":
        """Returns the task of an index that has been parsed already."""
        task = cls(0, num_tasks)
        task.index, task.known = index, known
        return task

    @property
    def is_soft(self) -> bool:
        """Whether `index` holds weights to mix contexts with."""
        return is_soft(self.index)

    @property
    def is_one(self) -> bool:
        """Whether one index stands for the whole batch."""
        return len(getattr(self.index, "shape", ())) == 0

    def rows(self, bank: Any, like: Any, axis: int | None = None) -> Any:
        """Returns each example's row of a bank, shaped to broadcast against `like`.

        Args:
            bank: Float tensor of shape `(num_tasks, ...)`.
            like: Tensor of shape `(batch, ...)`.
            axis: Integer, the dimension of `like` along which a row of one dimension
                goes. Defaults to the last ones.

        Returns:
            Tensor of the dtype of `like`; soft weights mix the rows.
        """
        bank = ops.cast(bank, like.dtype)
        if self.is_soft:
            rows = ops.tensordot(ops.cast(self.index, like.dtype), bank, axes=1)
        elif self.in_blocks:
            rows = ops.repeat(bank, self._size // self.num_tasks, axis=0)
        else:
            rows = take_rows(bank, self.index)
        if self.is_one and axis is None:
            return rows  # Which broadcasts as it is.
        rank, shape = len(like.shape), list(bank.shape[1:])
        if axis is not None:
            shape += [1] * (rank - 1 - axis % rank)
        shape = [1] * (rank - 1 - len(shape)) + shape
        return ops.reshape(rows, (1 if self.is_one else -1, *shape))

    def sum_by_task(self, values: Any) -> Any:
        """Returns the sums over each task's examples, `(num_tasks, ...)`.

        Args:
            values: Tensor of shape `(batch, ...)`.
        """
        if self.in_blocks:
            return ops.sum(self.as_blocks(values), axis=1)
        shape = (self.num_tasks, *values.shape[1:])
        index = ops.expand_dims(self.index, 1)
        zeros = ops.zeros(shape, values.dtype)
        return ops.scatter_update(zeros, index, values, reduction="add")

    def as_blocks(self, values: Any) -> Any:
        """Returns values of a batch in blocks by their task, `(num_tasks, n, ...)`."""
        each = self._size // self.num_tasks
        return ops.reshape(values, (self.num_tasks, each, *ops.shape(values)[1:]))

    @property
    def _size(self) -> Any:
        """How many examples there are."""
        return ops.shape(self.index)[0]

    def present(self) -> list[int]:
        """The tasks that a batch may hold: all, unless its indices can be read."""
        if is_readable(self.index):
            return np.unique(to_numpy(self.index)).tolist()
        return [k for k in range(self.num_tasks) if k not in self.removed]

    def examples_of(self, task: int, structure: Any) -> tuple[Any, Any]:
        """Returns a batch in which a task's examples stand in the place of all others.

        They do so in turn, as often as one another, or once more.

        Args:
            task: Integer.
            structure: Structure of tensors, those of shape `(batch, ...)` among them.

        Returns:
            `(structure, there)`: with those, and their masks, of that task alone; and
            whether it has an example, a boolean tensor `()`. Else the first one stands
            for all.
        """
        own = ops.equal(self.index, task)
        others = ops.cast(ops.logical_not(own), "int32")
        number = ops.sum(ops.cast(own, "int32"))
        order = ops.cast(ops.argsort(others), "int32")  # Its own first.
        turns = ops.mod(ops.cumsum(others) - 1, ops.maximum(number, 1))
        places = ops.arange(self._size, dtype="int32")
        places = ops.where(own, places, ops.take(order, turns))

        def take(each: Any) -> Any:
            if tuple(getattr(each, "shape", ()))[:1] != tuple(self.index.shape):
                return each
            taken, mask = ops.take(each, places, axis=0), mask_of(each)
            if mask is not None:
                set_mask(taken, ops.take(mask, places, axis=0))
            return taken

        return keras.tree.map_structure(take, structure), ops.greater(number, 0)

    def select(self, task: Any, outputs: Any, others: Any) -> Any:
        """Returns a task's outputs for its own examples, and others for the rest.

        Args:
            task: Integer, or a tensor of one.
            outputs: Structure of tensors of shape `(batch, ...)`.
            others: Structure like `outputs`.
        """

        def where(new: Any, old: Any) -> Any:
            if new is None:
                return None
            own = ops.equal(self.index, task)
            return ops.where(
                ops.reshape(own, (-1,) + (1,) * (len(new.shape) - 1)), new, old
            )

        return keras.tree.map_structure(where, outputs, others)

    def in_turn(self, compute: Callable[[Any], Any]) -> Any:
        """Computes a batch of several tasks once for each task that it may hold.

        Args:
            compute: Function of a task's index, an integer or a tensor, that returns
                what the task gives for all examples.

        Returns:
            What each example's own task gives.
        """

        def step(task: Any, others: Any) -> Any:
            return self.select(task, compute(task), others)

        present = self.present()
        first = compute(present[0])
        # Which has a row for each example.
        outputs = self.select(present[0], first, first)
        if not is_readable(self.index):

            def tensors(structure: Any) -> list:
                return [x for x in keras.tree.flatten(structure) if x is not None]

            def whole(found: list) -> Any:
                rest = iter(found)
                return keras.tree.map_structure(
                    lambda each: None if each is None else next(rest), outputs
                )

            def carry(task: Any, found: list) -> list:
                return tensors(step(task, whole(found)))

            # A loop of TensorFlow carries tensors alone.
            start = tensors(outputs)
            return whole(ops.fori_loop(1, self.num_tasks, carry, start))
        for k in present[1:]:
            outputs = step(k, outputs)
        return outputs

    def mask(self, outputs: Any) -> Any:
        """Makes the outputs of every example of an unknown task NaN.

        Args:
            outputs: Float tensor of shape `(batch, ...)`. Of other dtypes, it stays as
                it is.

        Returns:
            Tensor like `outputs`.
        """
        dtype = getattr(outputs, "dtype", None)
        if self.known is None or dtype is None:
            return outputs
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype)):
            return outputs
        known = self.known
        if len(known.shape) == 1:
            known = ops.reshape(known, (-1,) + (1,) * (len(outputs.shape) - 1))
        # A pass less over the outputs than to select. And not added, for TensorFlow
        # takes what is added to a convolution for a bias, joins the two, and fails.
        mask = ops.cast(ops.where(known, 0.0, float("nan")), outputs.dtype)
        return ops.subtract(outputs, mask)

    def branch(
        self, one: Callable, mixed: Callable, apart: Any = None, blocks: Any = None
    ) -> Any:
        """Computes for one task where a batch holds no other: that may cost far less.

        Args:
            one: Function of a `Task` of one index, that of the whole batch.
            mixed: Function without arguments, for a batch of any tasks.
            apart: Function like `mixed`, to be called instead where a program branches
                anyway, and so need not be plain; or `None`.
            blocks: Function like `mixed`, for a batch `in_blocks`; or `None`.

        Returns:
            What the function that was called returned. All return alike.
        """
        if self.is_soft:
            return mixed()
        if self.is_one:
            return one(self)
        if self.in_blocks:
            return (blocks or mixed)()
        uniform = holds_one_task(self.index, self.known)
        if uniform is None:
            return mixed()
        return cond(uniform, lambda: one(self._first()), apart or mixed)

    def _first(self) -> "Task":
        """The first example's task."""
        index, known = self.index, self.known
        if index.shape[0] is None:  # A sum, for there may be no first one.
            index = ops.sum(index[:1])
            known = None if known is None else ops.all(known[:1])
        else:
            index, known = index[0], None if known is None else known[0]
        return Task.of_index(index, self.num_tasks, known)


def _only_task(given: Any, inputs: Any) -> int | None:
    """Returns the one task of a batch's examples as an integer, or `None`.

    Layers look it up without a tensor, which takes less time.
    """
    shape = getattr(given, "shape", ())
    if inputs is None or is_soft(given) or shape[:1] != inputs.shape[:1]:
        return None
    values = to_numpy(given)
    if values.size == 0 or (values != values.flat[0]).any():
        return None
    return int(values.flat[0])


def align(rows: Any, inputs: Any) -> Any:
    """Reshapes rows, `(batch, n)` or `(n,)`, to broadcast against `(batch, ..., M)`."""
    if len(rows.shape) == 1:
        return rows
    middle = (1,) * (len(inputs.shape) - 2)
    return ops.reshape(rows, (-1, *middle, rows.shape[-1]))


def mask_outputs(outputs: Any, task: Any, num_tasks: int, removed: Removed = ()) -> Any:
    """Marks what a model answers for every example of an unknown task.

    What stands behind a layer may turn its NaN into numbers: an activation on some
    compilers, an argument of the maximum, a threshold.

    Args:
        outputs: Structure of tensors of shape `(batch, ...)`.
        task: Integer tensor, the model's input.
        num_tasks: Integer, the number of tasks.
        removed: Indices of tasks that were removed.

    Returns:
        The structure, with `unknown_answer()` in these places.
    """
    if is_readable(task):
        return outputs  # The layers have checked it.
    parsed = Task(task, num_tasks, removed=removed)

    def mark(each: Any) -> Any:
        dtype = keras.backend.standardize_dtype(each.dtype)
        if keras.backend.is_float_dtype(dtype):
            return parsed.mask(each)
        known: Any = parsed.known
        if len(known.shape) == 1:
            known = ops.reshape(known, (-1,) + (1,) * (len(each.shape) - 1))
        return ops.where(known, each, ops.cast(unknown_answer(dtype), each.dtype))

    def mark_and_keep_mask(each: Any) -> Any:
        marked, mask = mark(each), mask_of(each)
        if mask is not None:  # The loss reads it.
            set_mask(marked, mask)
        return marked

    if parsed.known is None:
        return outputs
    return keras.tree.map_structure(mark_and_keep_mask, outputs)


def unknown_answer(dtype: str) -> float | int:
    """Returns what a model answers for an unknown task, by the dtype of its output.

    It is NaN; of integers the lowest number, or the highest if they have no sign. Of
    booleans it is false: a `TaskModel` refuses these, but models of their own class
    hand masks on.
    """
    if dtype == "bool":
        return False
    if not keras.backend.is_int_dtype(dtype):
        return float("nan")
    info = np.iinfo(dtype)
    return int(info.max if dtype.startswith("uint") else info.min)


def task_argument(task: Any, layer: Any, inputs: Any) -> Any:
    """Returns the `task` that a layer is to hand on to its `call()`, checked.

    Args:
        task: What it was called with, or `None`.
        layer: The `TaskLayer`.
        inputs: What it was called on.

    Returns:
        What `check_task()` returns; or `scope.FROM_SCOPE`, if `call()` is to look for
        the task of the scope itself.

    Raises:
        ValueError: There is no task, nor a scope.
    """
    if task is None:
        task = scope.argument(layer.name, inputs)
    if scope.is_scoped(task):
        return task
    task = named_index(task, layer.task_names)
    return check_task(as_index(task), layer.num_tasks, layer.removed_tasks)
