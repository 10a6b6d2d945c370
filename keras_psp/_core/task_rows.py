"""The mark of variables that have a row for each task.

Layers set it where they make such a variable. Optimizers read it: they meet variables
without the layers that the variables belong to.
"""

from typing import Any

_MARK = "keras_psp_task_rows"


def mark_task_rows(variable: Any) -> Any:
    """Marks a `keras.Variable` of shape `(num_tasks, ...)`, and returns it."""
    setattr(variable, _MARK, True)
    return variable


def is_task_rows(variable: Any) -> bool:
    """Whether a variable has a row for each task."""
    return getattr(variable, _MARK, False)
