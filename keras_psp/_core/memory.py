"""The one counter of bytes: of weights, whatever holds them."""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np


def count_bytes(weights: Iterable[Any]) -> int:
    """Returns how many bytes weights take in the dtypes that they are stored in.

    Args:
        weights: Variables, tensors or arrays; each counts once, however often it is
            among them.
    """
    different = {id(weight): weight for weight in weights}
    return sum(map(_count, different.values()))


def _count(weight: Any) -> int:
    dtype = keras.backend.standardize_dtype(weight.dtype)
    return math.prod(weight.shape) * np.dtype(dtype).itemsize
