"""What an accuracy matrix says: pure functions of R[i, j].

R[i, j] is the accuracy on task j after training task i, in [0, 1], shape
`(num_tasks, num_tasks)`. Only its lower triangle, the tasks seen so far, is used; the
rest may be NaN.
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
    change = matrix[-1] - np.diagonal(matrix)
    return float(change[:-1].mean()) if len(matrix) > 1 else 0.0


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
    if len(matrix) == 1:
        return 0.0
    falls = [matrix[j:-1, j].max() - matrix[-1, j] for j in range(len(matrix) - 1)]
    return float(np.mean(falls))


def _check(matrix):
    matrix = np.asarray(matrix, dtype="float64")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(
            "An accuracy matrix has shape (num_tasks, num_tasks). "
            f"Received: shape {matrix.shape}"
        )
    if np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        raise ValueError("An accuracy matrix has no gaps below its diagonal.")
    return matrix
