"""Small numbers that share words: the one place that takes words apart.

Random signs and the codes of kernels in a few bits both need it. It is written for two
namespaces at once: NumPy, and `keras.ops` for use inside a graph. Its integer
operations are those that every export format knows.
"""

from typing import Any

import numpy as np


def unpack(xp: Any, words: Any, bits: int, count: int, width: int = 1) -> Any:
    """Returns the first `count` numbers in rows of words, the lowest bits first.

    Args:
        xp: `numpy` or `keras.ops`.
        words: int32 of shape `(num_words,)` or `(rows, num_words)`.
        bits: Integer, how many bits of a word count.
        count: Integer.
        width: Integer, how many bits each number has. It divides `bits`.

    Returns:
        int32 of shape `(count,)` or `(rows, count)`, in `[0, 2**width)`.
    """
    shifts = np.arange(0, bits, width, dtype="int32")
    shifted = xp.right_shift(xp.expand_dims(words, -1), shifts)
    unpacked = xp.bitwise_and(shifted, 2**width - 1)
    rows = (-1,) * (len(words.shape) - 1)
    size = words.shape[-1] * len(shifts)
    return xp.reshape(unpacked, (*rows, size))[..., :count]
