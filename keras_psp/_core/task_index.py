"""What a task index may be, checked as far as it can be known."""

from numbers import Integral
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import is_readable


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


def check_task(task: Any, num_tasks: int) -> Any:
    """Checks a `task` argument as far as it can be known now.

    Its dtype and rank are always known. Its values are known, and checked, when it
    is a Python integer, a list, a NumPy array or a tensor that can be read without
    waiting for an accelerator. `Task.mask()` answers for the rest at run time.

    Args:
        task: int, list of ints, array or tensor of shape `()`, `(batch,)` or
            `(batch, 1)`; or soft contexts, floats of shape `(batch, num_tasks)`.
        num_tasks: int, the number of tasks.

    Returns:
        `task`; an `int` if it was a NumPy scalar, a NumPy array if it was a list.

    Raises:
        TypeError: The index is not of an integer dtype.
        ValueError: The index has another rank or lies outside `[0, num_tasks)`, or
            there is not one soft weight for each task.
    """
    task = check_task_type(task, num_tasks)
    if not is_soft(task) and is_readable(task):
        values = (
            np.asarray(task) if isinstance(task, int) else ops.convert_to_numpy(task)
        )
        wrong = values[(values < 0) | (values >= num_tasks)]
        if wrong.size:
            raise ValueError(
                f"`task` must lie in [0, {num_tasks}). Received: task={wrong.flat[0]}"
            )
    return task


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
