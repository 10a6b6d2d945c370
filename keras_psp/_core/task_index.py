"""What a task index may be, checked as far as it can be known."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import is_readable
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_names
from keras_psp._core.private import is_symbolic

TaskNames = tuple[str, ...]
Removed = tuple[int, ...]  # Indices of tasks that were removed.


class Named(NamedTuple):
    """The task of a scope, by name.

    Attributes:
        names: The names, one for each example.
        is_one: Whether there is one for all examples.
    """

    names: TaskNames
    is_one: bool


def as_named(task: Any) -> Named | None:
    """Returns names of tasks as they are given, or `None` if it is no name."""
    if isinstance(task, str):
        return Named((task,), True)
    if isinstance(task, np.ndarray) and task.dtype.kind == "U" and task.ndim == 1:
        task = task.tolist()
    if isinstance(task, (list, tuple)) and task and isinstance(task[0], str):
        return Named(check_strings(task), False)
    return None


def named_index(task: Any, names: TaskNames | None) -> Any:
    """Returns the index of a task that is given by its name, or what else is given.

    Args:
        task: String, a list or array of them, or anything else.
        names: The names of the tasks in order, or `None`.

    Returns:
        Integer, or int32 array `(batch,)`; or `task` itself.

    Raises:
        ValueError: The tasks have no names, or none has this one.
    """
    named = task if isinstance(task, Named) else as_named(task)
    if named is None:
        return task
    if names is None:
        raise ValueError(
            "These tasks have no names: give an index, or make the model with names as "
            f"`num_tasks`. Received: task={named.names[0]!r}"
        )
    known = tuple(filter(None, names))  # Those of removed tasks are empty.
    index = [names.index(check_name("task", name, known)) for name in named.names]
    return index[0] if named.is_one else np.asarray(index, "int32")


def check_num_tasks(
    num_tasks: Any, name: str = "num_tasks"
) -> tuple[int, TaskNames | None]:
    """Returns the number of tasks, and their names if these are given in its place.

    Raises:
        TypeError: `num_tasks` is neither an integer nor a list of strings.
        ValueError: It is not positive, or a name is empty or given twice.
    """
    if isinstance(num_tasks, (list, tuple)):
        return len(num_tasks), check_task_names(num_tasks)
    return check_integer(name, num_tasks), None


def check_strings(names: Any) -> TaskNames:
    """Returns strings as a tuple; raises a `TypeError` if there are none, or others."""
    if isinstance(names, str):
        raise TypeError(
            f"Names of tasks must be a list of strings. Received: {names!r}"
        )
    names = tuple(names)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"Names of tasks must be strings, at least one. Received: {names!r}"
        )
    return names


def check_task_names(names: Any) -> TaskNames:
    """Returns names of tasks as a tuple; see `check_num_tasks()`."""
    names = check_strings(names)
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"Each task must have a name of its own. Received: {names!r}")
    return names


def split_names(what: str, given: Any) -> tuple[Any, TaskNames | None]:
    """Returns the values of a dictionary by tasks' names, and these names.

    Args:
        what: The argument's name, for messages.
        given: Dictionary, or anything else.

    Returns:
        `(values, names)`: a list; or what was given, and `None`.

    Raises:
        TypeError: A name is no string.
        ValueError: It is empty.
    """
    if not isinstance(given, Mapping):
        return given, None
    if not given:
        raise ValueError(f"`{what}` must not be empty. Received: {what}={given!r}")
    return list(given.values()), check_task_names(given)


def in_order(what: str, given: Any, names: TaskNames | None) -> Any:
    """Returns the values of a dictionary by tasks' names, in the order of the names.

    Raises:
        ValueError: There are no names, or the dictionary has others.
    """
    if not isinstance(given, Mapping):
        return given
    if names is None:
        raise ValueError(
            f"`{what}` may be a dictionary where the tasks have names. Received: "
            f"{what} with {list(given)}"
        )
    check_names(what, given, names)
    return [given[name] for name in names]


def is_soft(task: Any) -> bool:
    """Whether `task` holds soft contexts, a float weight for each task.

    A float tensor of shape `(batch, 1)` does not: it is an index of the wrong dtype.
    """
    shape: Any = getattr(task, "shape", ())
    return (
        len(shape) == 2
        and shape[1] != 1
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(task.dtype))
    )


def as_index(task: Any) -> Any:
    """Returns a float index as integers, where Keras computes shapes alone.

    Keras calls a model on floats to build it, when it loads one of a user's own class
    or trains one under `tf.distribute`. Nothing is answered or trained there.
    """
    if (
        is_symbolic()
        and hasattr(task, "dtype")
        and not isinstance(task, keras.KerasTensor)
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(task.dtype))
        and not is_soft(task)
    ):
        return ops.cast(task, "int32")
    return task


def known_tasks(values: np.ndarray, num_tasks: int, removed: Removed) -> np.ndarray:
    """Returns whether there are such tasks, for an array of indices."""
    known = (values >= 0) & (values < num_tasks)
    # Every layer asks in every step on torch: most models have removed none.
    return known & ~np.isin(values, removed) if removed else known


def describe_tasks(num_tasks: int, removed: Removed) -> str:
    """Returns what a task index must be, the beginning of an error's message."""
    message = f"`task` must lie in [0, {num_tasks})"
    if removed:
        message += f" and not in {list(removed)}, the tasks that were removed"
    return message


def check_task(task: Any, num_tasks: int, removed: Removed = ()) -> Any:
    """Checks a `task` argument as far as it can be known now.

    Its dtype and rank are always known. Its values are known, and checked, when it
    is a Python integer, a list, a NumPy array or a tensor that can be read without
    waiting for an accelerator. `Task.mask()` answers for the rest at run time.

    Args:
        task: int, list of ints, array or tensor of shape `()`, `(batch,)` or
            `(batch, 1)`; or soft contexts, floats of shape `(batch, num_tasks)`.
        num_tasks: int, the number of tasks.
        removed: Indices that no task has.

    Returns:
        `task`; an `int` if it was a NumPy scalar, a NumPy array if it was a list.

    Raises:
        TypeError: The index is not of an integer dtype.
        ValueError: The index has another rank, lies outside `[0, num_tasks)` or is that
            of a task that was removed, or there is not one soft weight for each task.
    """
    task = check_task_type(task, num_tasks)
    if not is_soft(task) and is_readable(task):
        values = (
            np.asarray(task) if isinstance(task, int) else ops.convert_to_numpy(task)
        )
        wrong = values[~known_tasks(values, num_tasks, removed)]
        if wrong.size:
            tasks = describe_tasks(num_tasks, removed)
            raise ValueError(f"{tasks}. Received: task={wrong.flat[0]}")
    return task


def check_task_index(task: Any, num_tasks: int, removed: Removed = ()) -> int:
    """Returns one task's index as an `int`; see `check_task()`."""
    return check_integer("task", check_task(task, num_tasks, removed), least=0)


def check_task_type(task: Any, num_tasks: int | None = None) -> Any:
    """Checks the dtype and the shape of a `task` argument; see `check_task`."""
    if isinstance(task, (list, tuple)):
        task = np.asarray(task)
    if isinstance(task, Integral) and not isinstance(task, bool):
        return int(task)
    if not hasattr(task, "dtype"):
        raise TypeError(
            "`task` must be an integer or a tensor of integers. "
            f"Received: task={task!r} (of type {type(task).__name__})"
        )
    dtype = keras.backend.standardize_dtype(task.dtype)
    if is_soft(task):
        if num_tasks is not None and task.shape[1] not in (None, num_tasks):
            raise ValueError(
                "Soft contexts must have shape (batch, num_tasks), a weight for each "
                f"of {num_tasks} tasks. Received: task of shape {tuple(task.shape)}"
            )
        return task
    if "int" not in dtype:
        raise TypeError(
            "`task` must have an integer dtype, because it is an index. For a "
            'functional model use `keras.Input((), dtype="int32")`. '
            f"Received: task of dtype {dtype}"
        )
    if len(task.shape) > 2 or (len(task.shape) == 2 and task.shape[1] != 1):
        raise ValueError(
            "`task` must have shape (), (batch,) or (batch, 1). "
            f"Received: task of shape {tuple(task.shape)}"
        )
    return task
