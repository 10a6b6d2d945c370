"""The scope that layers take their task from: `with keras_psp.task(3): ...`."""

import contextlib
import contextvars
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_psp._core import backend
from keras_psp._core.private import is_symbolic
from keras_psp._core.task_index import Named
from keras_psp._core.task_index import Removed
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import as_index
from keras_psp._core.task_index import as_named
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import check_task_type
from keras_psp._core.task_index import is_soft
from keras_psp._core.task_index import named_index

# Stands for the scope's task among a layer's arguments, so that the graph of a
# functional model, and its file, hold no task.
FROM_SCOPE = "<keras_psp.task>"
# What a scope holds that is no tensor.
KNOWN = (int, np.ndarray, Named)


class _Opened(NamedTuple):
    # int, NumPy array, `Named`, or a tensor of the graph that is being traced.
    value: Any
    graph: Any  # What identifies that graph, or `None`.
    for_shapes: bool  # Whether shapes alone were computed where it was opened.
    gradients: Any  # What identifies the gradients that were being computed, or `None`.
    checked: set | None  # What layers have asked of `KNOWN`, and found to be right.


_opened: contextvars.ContextVar[_Opened | None] = contextvars.ContextVar(
    "keras_psp.task", default=None
)
# `torch.compile` cannot trace context variables and would break its graph at each.
# Scopes that are opened in what it compiles stand here.
_opened_in_graph = threading.local()


@contextlib.contextmanager
def task(task: Any) -> Iterator[None]:
    """Opens a scope: layers that are called in it without a task take this one.

    That is how layers inside blocks that know no task get theirs. Scopes nest; the
    inner one counts. Each thread has its own.

    A compiled function does not keep the task it was traced with: two scopes around one
    compiled model are two tasks. On TensorFlow and torch the task travels as data. JAX
    traces the function once for each.

    Args:
        task: Integer for the whole batch, or integers of shape `(batch,)` or
            `(batch, 1)`, one index for each example: a list, an array or a tensor. Or
            the task's name, or a list of names, if the model's tasks have names.

    Yields:
        Nothing.

    Raises:
        TypeError: `task` is not of an integer dtype.
        ValueError: An index is negative, or `task` has another shape. A layer raises
            one if the index is not less than its `num_tasks`, or no task has the name.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPDense(2, num_tasks=10)
    >>> x = keras.ops.ones((3, 4))
    >>> with keras_psp.task(7):
    ...     y = layer(x)
    >>> bool(keras.ops.all(y == layer(x, 7)))
    True
    """
    value = as_named(task) or check_task_type(as_index(task))
    if isinstance(value, Named):
        pass  # The layers know which task it is.
    elif backend.is_readable(value) and not is_soft(value):
        array = np.asarray(value) if isinstance(value, int) else backend.to_numpy(value)
        if (array < 0).any():
            raise ValueError(
                f"`task` must not be negative. Received: task={array.min()}"
            )
        # What int32 cannot hold is no task of any layer.
        most = np.iinfo("int32").max
        array = np.where(array > most, np.int64(most), array).astype("int32")
        value = int(array) if array.ndim == 0 else array
    known = isinstance(value, KNOWN)
    with contextlib.ExitStack() as stack:
        if known or not backend.is_compiling_torch():  # Which traces no such context.
            stack.enter_context(backend.trace_for(value))
        opened = _Opened(
            value,
            backend.current_graph(),
            is_symbolic(),
            backend.gradients_under_way(),
            set() if known else None,
        )
        stack.enter_context(_open(opened))
        yield


@contextlib.contextmanager
def _open(opened: _Opened) -> Iterator[None]:
    outer = getattr(_opened_in_graph, "innermost", None)
    if outer is not None or backend.is_compiling_torch():
        _opened_in_graph.innermost = opened
        try:
            yield
        finally:
            _opened_in_graph.innermost = outer
    else:
        token = _opened.set(opened)
        try:
            yield
        finally:
            _opened.reset(token)


def _innermost() -> _Opened | None:
    in_graph = getattr(_opened_in_graph, "innermost", None)
    return _opened.get() if in_graph is None else in_graph


def reopened(given: Any) -> contextlib.AbstractContextManager:
    """Returns the scope of what a layer was called with, for the layers inside it."""
    return (
        contextlib.nullcontext() if is_scoped(given) or _holds(given) else task(given)
    )


def _holds(given: Any) -> bool:
    """Whether the scope is open for the same tensor, where the same is traced."""
    opened = _innermost()
    if opened is None or given is not opened.value or isinstance(given, KNOWN):
        return False
    now = backend.current_graph(), is_symbolic()
    return now == (opened.graph, opened.for_shapes)


def keeping(call: Callable) -> Callable:
    """Returns a function that runs in the scope of now, whenever it is called.

    That is for what is computed again for gradients, when the scope may have ended.
    """
    opened = _innermost()
    if opened is None:
        return call

    def again(*args: Any, **kwargs: Any) -> Any:
        value, graph, for_shapes, _, checked = opened
        gradients = backend.gradients_under_way()
        with _open(_Opened(value, graph, for_shapes, gradients, checked)):
            return call(*args, **kwargs)

    return again


def check_reaches(layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if a layer cannot know its task where it is computed again.

    `keras.remat()` and torch's checkpoints call layers once more for gradients, when
    the scope of the first call has ended; another one may be open.

    Args:
        layer: The layer.
    """
    gradients = backend.gradients_under_way()
    if gradients is None:
        return
    opened = _innermost()
    if opened is not None and opened.gradients == gradients:
        return
    raise ValueError(
        "A layer that takes its task from a scope cannot be computed again for "
        "gradients by `keras.remat()` or a checkpoint inside the block that calls it: "
        "the scope has ended then. Make the block in a `keras.RematScope` instead, or "
        f"leave the layer out with `layers=`. Received: {layer.path!r}"
    )


def is_scoped(given: Any) -> bool:
    """Whether what a layer was called with stands for the task of the scope."""
    return isinstance(given, str) and given == FROM_SCOPE


def argument(name: str, inputs: Any) -> Any:
    """Returns what a layer is to be called with that was called without a task.

    Args:
        name: The layer's name, for the message.
        inputs: What it was called on.

    Returns:
        The tensor that the scope holds; or `FROM_SCOPE`, where its value is known now
        and may be another one when a compiled function or a graph runs again.

    Raises:
        ValueError: There is no scope, and the layer is to compute something.
    """
    opened = _innermost()
    symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(inputs))
    if opened is None and not symbolic and not is_symbolic():
        raise ValueError(
            f"{name!r} must be called with a `task`, or inside "
            "`with keras_psp.task(...):`. Received: task=None"
        )
    if opened is None or isinstance(opened.value, KNOWN) or _is_of_no_use(opened):
        return FROM_SCOPE
    if symbolic and not isinstance(opened.value, keras.KerasTensor):
        return FROM_SCOPE  # A graph is made here, which is no part of what is traced.
    return opened.value


def _is_of_no_use(opened: _Opened) -> bool:
    """Whether shapes alone are computed, and the scope was opened outside of that.

    Its tensor, symbolic or of another graph, cannot be used then. What is built now
    finds a scope when it runs.
    """
    return is_symbolic() and not opened.for_shapes


def tensor() -> Any:
    """Returns the scope's task if it is a tensor, or `None`.

    What is known now, and what TensorFlow reads at each call, is checked by the layers.
    """
    opened = _innermost()
    if opened is None or isinstance(opened.value, KNOWN):
        return None
    return None if _is_of_no_use(opened) else opened.value


def known() -> "int | np.ndarray | Named | None":
    """Returns the scope's task if it is known now, and no tensor; or `None`."""
    opened = _innermost()
    return opened.value if opened and isinstance(opened.value, KNOWN) else None


def current(
    inputs: Any,
    num_tasks: int | None = None,
    names: TaskNames | None = None,
    removed: Removed = (),
) -> Any:
    """Returns the scope's task, as data where a function is being traced.

    Args:
        inputs: Tensor of shape `(batch, ...)`, the inputs of the layer that asks.
        num_tasks: Integer, the number of tasks, if it is to be checked at each call of
            a compiled function: what follows may turn NaN into words.
        names: The tasks' names, or `None`.
        removed: Indices of tasks that were removed.

    Raises:
        ValueError: There is no scope.
    """
    opened = _innermost()
    if opened is None and not is_symbolic():
        raise ValueError(
            "These layers take their task from a scope: call them inside "
            "`with keras_psp.task(...):`. Received: no scope"
        )
    if opened is None or _is_of_no_use(opened):
        return 0  # A model is being built or loaded: any task has the same shapes.
    value = named_index(opened.value, names)
    if opened.graph is not None or not isinstance(opened.value, KNOWN):
        return value  # The scope is part of what is traced.

    def read() -> Any:
        # When a compiled function is called: the scope may be another one, or none.
        value = current(None, names=names)
        return value if num_tasks is None else check_task(value, num_tasks, removed)

    tasks = num_tasks, names, removed
    return backend.travelling(value, read, inputs, tasks)


def current_checked(
    inputs: Any,
    num_tasks: int,
    names: TaskNames | None = None,
    removed: Removed = (),
) -> Any:
    """Returns what `current()` does, checked by `check_task()`.

    An array is checked once, however many layers ask.
    """
    value, opened = current(inputs, num_tasks, names, removed), _innermost()
    if not isinstance(value, np.ndarray) or opened is None or value is not opened.value:
        return check_task(value, num_tasks, removed)
    checked: Any = opened.checked
    if (num_tasks, removed) not in checked:
        check_task(value, num_tasks, removed)
        checked.add((num_tasks, removed))
    return value
