"""What an accuracy matrix says: pure functions of R[i, j].

R[i, j] is the accuracy on task j after training task i, in [0, 1], shape
`(num_tasks, num_tasks)`. Only its lower triangle, the tasks seen so far, is used; the
rest may be NaN. If the tasks are visited again and again, in the same order, it has a
row for each visit, `(num_visits, num_tasks)`, and a task's training is its last visit.
"""

import numpy as np


def average_accuracy(matrix: np.ndarray) -> float:
    """Returns the mean accuracy over all tasks after the last one.

    Example:

    >>> average_accuracy([[1.0, 0.0], [0.5, 0.75]])
    0.625

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 2.
    """
    return float(_check(matrix)[-1].mean())


def learning_accuracy(matrix: np.ndarray) -> float:
    """Returns the mean accuracy on each task right after its training.

    Example:

    >>> learning_accuracy([[1.0, 0.0], [0.5, 0.75]])
    0.875

    Reference:
        [Riemer et al., 2019](https://arxiv.org/abs/1810.11910), section 5.
    """
    return float(_just_trained(_check(matrix)).mean())


def retention(matrix: np.ndarray, task: int = 0) -> float:
    """Returns what is left of a task: its accuracy at the end over that when trained.

    NaN for a task that never had any.

    Example:

    >>> retention([[1.0, 0.0], [0.5, 0.75]])
    0.5
    """
    matrix = _check(matrix)
    trained = _just_trained(matrix)[task]
    return float(matrix[-1, task] / trained) if trained > 0 else float("nan")


def backward_transfer(matrix: np.ndarray) -> float:
    """Returns what training later tasks did to earlier ones, on average.

    Negative if they were forgotten; 0 for a single task.

    Example:

    >>> backward_transfer([[1.0, 0.0], [0.5, 0.75]])
    -0.5

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 3.
    """
    matrix = _check(matrix)
    change = matrix[-1] - _just_trained(matrix)
    return float(change[:-1].mean()) if len(change) > 1 else 0.0


def forward_transfer(ahead: np.ndarray, num_classes: int) -> float:
    """Returns what training earlier tasks did for later ones, on average.

    Args:
        ahead: The accuracy on each task right before its own training, `(num_tasks,)`:
            R[j - 1, j] for task j; that of task 0 is not used.
        num_classes: Positive integer; guessing, as a network does before its first
            training, gets one in so many right.

    Returns:
        How much more than guessing; NaN for a single task.

    Example:

    >>> forward_transfer([float("nan"), 0.5, 0.25], num_classes=4)
    0.125

    Reference:
        [Lopez-Paz and Ranzato, 2017](https://arxiv.org/abs/1706.08840), equation 4.
    """
    ahead = np.asarray(ahead, dtype="float64")[1:]
    return float(ahead.mean() - 1 / num_classes) if len(ahead) else float("nan")


def forgetting(matrix: np.ndarray) -> float:
    """Returns how far tasks fell from their best accuracy, on average.

    The best is over the time from a task's training to before the last task's; 0 for a
    single task.

    Example:

    >>> forgetting([[1.0, 0.0], [0.5, 0.75]])
    0.5

    Reference:
        [Chaudhry et al., 2018](https://arxiv.org/abs/1801.10112), section 3.1.
    """
    matrix = _check(matrix)
    num_tasks = matrix.shape[1]
    if num_tasks == 1:
        return 0.0
    falls = [matrix[j:-1, j].max() - matrix[-1, j] for j in range(num_tasks - 1)]
    return float(np.mean(falls))


METRICS = {
    "average_accuracy": average_accuracy,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
    "learning_accuracy": learning_accuracy,
    "retention": retention,
}


def _just_trained(matrix):
    return np.diagonal(matrix[-matrix.shape[1] :])


def _check(matrix):
    matrix = np.asarray(matrix, dtype="float64")
    if matrix.ndim != 2 or not matrix.size or matrix.shape[0] % matrix.shape[1]:
        raise ValueError(
            "An accuracy matrix has shape (num_tasks, num_tasks), or a multiple of so "
            f"many rows. Received: shape {matrix.shape}"
        )
    if np.isnan(matrix[np.tril_indices(len(matrix), m=matrix.shape[1])]).any():
        raise ValueError("An accuracy matrix has no gaps below its diagonal.")
    return matrix
