"""Random signs out of nothing: an integer hash of (seed, task, position).

It is written for two namespaces at once: with NumPy it draws banks of signs, with
`keras.ops` it regenerates the same signs inside a graph. Everything is int32, which
wraps round alike on NumPy and on every backend.
"""

from typing import Any

import numpy as np


def hash_words(xp: Any, seed: int, tasks: Any, num_words: Any) -> Any:
    """Returns 32 random bits for each task and word.

    Args:
        xp: `numpy` or `keras.ops`.
        seed: Non-negative integer.
        tasks: int32 array or tensor of shape `(1,)` or `(rows, 1)`.
        num_words: Integer.

    Returns:
        int32 of shape `(num_words,)` or `(rows, num_words)`.
    """
    keys = np.random.SeedSequence(seed).generate_state(1 + num_words).view("int32")
    rows = _mix(xp, xp.bitwise_xor(tasks, int(keys[0])))
    # Not all of a row's bits may be known from another's: hence twice.
    return _mix(xp, xp.add(rows, _mix(xp, xp.bitwise_xor(rows, keys[1:]))))


def unpack(xp: Any, words: Any, bits: Any, count: Any) -> Any:
    """Returns the first `count` bits of rows of words, the lowest bit first.

    Args:
        xp: `numpy` or `keras.ops`.
        words: int32 of shape `(num_words,)` or `(rows, num_words)`.
        bits: Integer, how many bits of a word count.
        count: Integer.

    Returns:
        int32 of shape `(count,)` or `(rows, count)`, 0 or 1.
    """
    shifts = np.arange(bits, dtype="int32")
    shifted = xp.right_shift(xp.expand_dims(words, -1), shifts)
    unpacked = xp.bitwise_and(shifted, 1)
    rows = (-1,) * (len(words.shape) - 1)
    return xp.reshape(unpacked, (*rows, words.shape[-1] * bits))[..., :count]


def _mix(xp, word):
    # The finalizer of MurmurHash3 (public domain, Austin Appleby), a bijection.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        mask = (1 << (32 - shift)) - 1  # int32 shifts the sign in.
        word = xp.bitwise_xor(word, xp.bitwise_and(xp.right_shift(word, shift), mask))
        if factor is not None:
            word = xp.multiply(word, factor - (1 << 32))
    return word
