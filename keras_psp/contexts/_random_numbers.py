"""Random numbers that are the same for ever: on every backend, in every version.

They come from the raw stream of NumPy's PCG64, which NumPy promises never to change,
and each task has its own stretch of it: more tasks leave the first ones as they are.
"""

import numpy as np


def words(seed: int, tasks: range, count: int) -> np.ndarray:
    """Returns `count` random uint64 for each of the consecutive `tasks`."""
    stream = np.random.PCG64(seed).advance(tasks.start * count)
    return stream.random_raw(len(tasks) * count).reshape(len(tasks), count)


def uniform(seed: int, tasks: range, count: int) -> np.ndarray:
    """Returns `count` float64 of [0, 1) for each of the consecutive `tasks`."""
    return (words(seed, tasks, count) >> np.uint64(11)) * 2.0**-53


def normal(seed: int, tasks: range, count: int) -> np.ndarray:
    """Returns `count` float64 of N(0, 1) for each of the consecutive `tasks`."""
    pairs = uniform(seed, tasks, 2 * count).reshape(len(tasks), 2, count)
    # Box and Muller's transform; log1p(-u) because u may be 0, but never 1.
    return np.sqrt(-2 * np.log1p(-pairs[:, 0])) * np.cos(2 * np.pi * pairs[:, 1])
