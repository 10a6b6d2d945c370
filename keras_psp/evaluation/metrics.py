"""Metrics of continual learning: pure functions of the accuracy matrix R.

R[i, j] is the accuracy on task j after training task i, in [0, 1]; R has shape
`(num_tasks, num_tasks)`. Only its lower triangle, the tasks seen so far, is used; the
rest may be NaN. If the tasks are visited several times, in the same order, R has a row
for each visit, `(num_visits, num_tasks)`, and a task's training is its last visit.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from keras_psp._core.checks import check_integer
from keras_psp._core.task_index import check_task_index


def average_accuracy(matrix: ArrayLike) -> float:
    """Returns the mean accuracy over all tasks after the last one.

    Args:
        matrix: R, numbers in [0, 1] of shape `(num_tasks, num_tasks)`, or
            `(num_visits, num_tasks)`: the accuracy on each task after each visit.

    Raises:
        TypeError, ValueError: `matrix` holds no numbers, is of another shape, or has
            NaN for a task that was trained before.

    Example:

    >>> average_accuracy([[1.0, 0.0], [0.5, 0.75]])
    0.625

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 2.
    """
    return float(_check(matrix)[-1].mean())


def learning_accuracy(matrix: ArrayLike) -> float:
    """Returns the mean accuracy on each task right after its training.

    Args:
        matrix: R, numbers in [0, 1] of shape `(num_tasks, num_tasks)`, or
            `(num_visits, num_tasks)`: the accuracy on each task after each visit.

    Raises:
        TypeError, ValueError: `matrix` holds no numbers, is of another shape, or has
            NaN for a task that was trained before.

    Example:

    >>> learning_accuracy([[1.0, 0.0], [0.5, 0.75]])
    0.875

    Reference:
        [Riemer et al., 2019](https://arxiv.org/abs/1810.11910), section 5.
    """
    return float(_just_trained(_check(matrix)).mean())


def retention(matrix: ArrayLike, task: int = 0) -> float:
    """Returns a task's accuracy at the end, divided by that right after its training.

    NaN for a task whose accuracy was 0.

    Args:
        matrix: R, numbers in [0, 1] of shape `(num_tasks, num_tasks)`, or
            `(num_visits, num_tasks)`: the accuracy on each task after each visit.
        task: Integer, the task.

    Raises:
        TypeError, ValueError: `matrix` holds no numbers, is of another shape, or has
            NaN for a task that was trained before; `task` is no index of a task.

    Example:

    >>> retention([[1.0, 0.0], [0.5, 0.75]])
    0.5
    """
    checked = _check(matrix)
    task = check_task_index(task, checked.shape[1])
    trained = _just_trained(checked)[task]
    return float(checked[-1, task] / trained) if trained > 0 else float("nan")


def backward_transfer(matrix: ArrayLike) -> float:
    """Returns the mean change of accuracy on a task by the training of later tasks.

    Negative if tasks were forgotten; 0 for a single task.

    Args:
        matrix: R, numbers in [0, 1] of shape `(num_tasks, num_tasks)`, or
            `(num_visits, num_tasks)`: the accuracy on each task after each visit.

    Raises:
        TypeError, ValueError: `matrix` holds no numbers, is of another shape, or has
            NaN for a task that was trained before.

    Example:

    >>> backward_transfer([[1.0, 0.0], [0.5, 0.75]])
    -0.5

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 3.
    """
    checked = _check(matrix)
    change = checked[-1] - _just_trained(checked)
    return float(change[:-1].mean()) if len(change) > 1 else 0.0


def forward_transfer(ahead: ArrayLike, num_classes: int) -> float:
    """Returns the mean accuracy on tasks before their training, above guessing.

    Args:
        ahead: The accuracy on each task right before its own training, `(num_tasks,)`:
            R[j - 1, j] for task j; that of task 0 is not used.
        num_classes: Positive integer; guessing has the accuracy `1 / num_classes`.

    Returns:
        Mean accuracy minus that of guessing; NaN for a single task.

    Raises:
        TypeError, ValueError: `ahead` holds no numbers, or `num_classes` is no positive
            integer.

    Example:

    >>> forward_transfer([float("nan"), 0.5, 0.25], num_classes=4)
    0.125

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 4.
    """
    check_integer("num_classes", num_classes)
    later = _numbers(ahead)[1:]
    return float(later.mean() - 1 / num_classes) if len(later) else float("nan")


def forgetting(matrix: ArrayLike) -> float:
    """Returns the mean fall of tasks from their best accuracy.

    The best accuracy of a task is the largest one from its training to before the last
    task's training. The result is 0 for a single task.

    Args:
        matrix: R, numbers in [0, 1] of shape `(num_tasks, num_tasks)`, or
            `(num_visits, num_tasks)`: the accuracy on each task after each visit.

    Raises:
        TypeError, ValueError: `matrix` holds no numbers, is of another shape, or has
            NaN for a task that was trained before.

    Example:

    >>> forgetting([[1.0, 0.0], [0.5, 0.75]])
    0.5

    Reference:
        [Chaudhry et al., 2018](https://arxiv.org/abs/1801.10112), section 3.1.
    """
    checked = _check(matrix)
    num_tasks = checked.shape[1]
    if num_tasks == 1:
        return 0.0
    falls = [checked[j:-1, j].max() - checked[-1, j] for j in range(num_tasks - 1)]
    return float(np.mean(falls))


METRICS: dict[str, Callable[[ArrayLike], float]] = {
    "average_accuracy": average_accuracy,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
    "learning_accuracy": learning_accuracy,
    "retention": retention,
}


def _just_trained(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix[-matrix.shape[1] :])


def _check(values: ArrayLike) -> np.ndarray:
    matrix = _numbers(values)
    if matrix.ndim != 2 or not matrix.size or matrix.shape[0] % matrix.shape[1]:
        raise ValueError(
            "An accuracy matrix has shape (num_tasks, num_tasks), or a multiple of so "
            f"many rows. Received: shape {matrix.shape}"
        )
    if np.isnan(matrix[np.tril_indices(len(matrix), m=matrix.shape[1])]).any():
        raise ValueError("An accuracy matrix has no gaps below its diagonal.")
    return matrix


def _numbers(values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"Accuracies must be numbers, in rows of equal length. Received: {values!r}"
        ) from error
