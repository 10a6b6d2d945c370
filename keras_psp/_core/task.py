"""What a task index may be, and what becomes of an example whose index is not one."""

from numbers import Integral

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import cond
from keras_psp._core.backend import holds_one_task
from keras_psp._core.backend import is_readable
from keras_psp._core.backend import remember_source


def is_soft(task):
    """Whether `task` holds soft contexts, a float weight for each task.

    A float tensor of shape `(batch, 1)` does not: it is an index of the wrong dtype.
    """
    shape = getattr(task, "shape", ())
    return (
        len(shape) == 2
        and shape[1] != 1
        and keras.backend.is_float_dtype(keras.backend.standardize_dtype(task.dtype))
    )


def check_task(task, num_tasks):
    """Checks a `task` argument as far as it can be known now.

    Its dtype and rank are always known. Its values are known, and checked, when it
    is a Python integer, a list, a NumPy array or a tensor that can be read without
    waiting for an accelerator. Whatever is left to run time is answered by
    `mask_unknown_tasks`.

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


def check_task_type(task, num_tasks):
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
        if task.shape[1] not in (None, num_tasks):
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


def split_task(task, num_tasks, inputs_shape):
    """Splits a checked `task` into an index that is safe to look up and its validity.

    Args:
        task: what `check_task` returned.
        num_tasks: int, the number of tasks.
        inputs_shape: shape of the inputs, `(batch, ...)`.

    Returns:
        `(index, known)`. For a Python integer and for soft contexts `(task, None)`.
        For a tensor of indices an int32 tensor of shape `()` or `(batch,)` clipped to
        `[0, num_tasks)`, and a boolean one that is `False` where clipping changed it;
        `None` if `check_task` could read, and so has checked, the values.
    """
    if isinstance(task, int):
        return task, None
    readable = is_readable(task)
    given = task = ops.convert_to_tensor(task)
    soft = is_soft(task)
    if len(task.shape) == 2 and not soft:
        task = ops.squeeze(task, axis=1)
    if len(task.shape) > 0:
        batch, tasks = inputs_shape[0], task.shape[0]
        if isinstance(batch, int) and isinstance(tasks, int) and batch != tasks:
            raise ValueError(
                "`task` must hold one index for each example. "
                f"Received: {tasks} for inputs of shape {tuple(inputs_shape)}"
            )
    if soft:
        return task, None
    # Compared at 64 bits where it has them: 2**32 must not wrap round to task 0. And
    # at no less than 32: `num_tasks` need not fit into an int8.
    dtype = keras.backend.standardize_dtype(task.dtype)
    if dtype not in ("int32", "int64"):
        task = ops.cast(task, "int64" if dtype == "uint64" else "int32")
    if readable:
        return ops.cast(task, "int32"), None
    clipped = ops.clip(task, 0, num_tasks - 1)
    index = ops.cast(clipped, "int32")
    remember_source(index, given)
    return index, ops.equal(clipped, task)


def mask_unknown_tasks(outputs, known):
    """Replaces the outputs of every example of an unknown task by NaN.

    Args:
        outputs: float tensor of shape `(batch, ...)`.
        known: `None`, or the boolean tensor of `split_task`.

    Returns:
        Tensor like `outputs`.
    """
    if known is None:
        return outputs
    if len(known.shape) == 1:
        known = ops.reshape(known, (-1,) + (1,) * (len(outputs.shape) - 1))
    # A pass less over the outputs than to select. And not added, for TensorFlow takes
    # what is added to a convolution for a bias, joins the two, and fails.
    mask = ops.cast(ops.where(known, 0.0, float("nan")), outputs.dtype)
    return ops.subtract(outputs, mask)


def by_task(index, one, mixed, *known, apart=None):
    """Computes for one task where a batch holds no other, which may be far cheaper.

    Args:
        index: what `split_task` returned.
        one: function of an index without dimensions, the whole batch's task, and of
            its validity, if that is given.
        mixed: function without arguments, for a batch of any tasks.
        *known: the validity that `split_task` returned, if it is a tensor and `one`
            uses it.
        apart: function like `mixed`, to be called instead where a program branches
            anyway, and so need not be plain; or `None`.

    Returns:
        What the function that was called returned. All return alike.
    """
    if is_soft(index):
        return mixed()
    if len(getattr(index, "shape", ())) == 0:
        return one(index, *known)
    uniform = holds_one_task(index, *known)
    if uniform is None:
        return mixed()
    return cond(uniform, lambda: one(*(x[0] for x in (index, *known))), apart or mixed)
