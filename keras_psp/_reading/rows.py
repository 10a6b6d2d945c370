"""A layer's inputs and kernels as rows, as NumPy arrays."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp.layers._superposed import Superposed


def input_rows(layer: Superposed, calls: Any) -> np.ndarray:
    """Returns what each group of a layer's filters is multiplied with.

    Args:
        layer: A superposed layer.
        calls: List of the arrays that it is called with, one for each call.

    Returns:
        float32 array of shape `(n, groups, M)`.
    """
    rows = [
        layer.input_rows(ops.cast(ops.convert_to_tensor(x), "float32"))
        for x in keras.tree.flatten(calls)
    ]
    return np.concatenate([ops.convert_to_numpy(each) for each in rows])


def kernel_rows(layer: Superposed, kernel: Any) -> np.ndarray:
    """Returns a kernel like a superposed layer's as float64 array `(M, N)`."""
    rows = layer.kernel_rows(ops.convert_to_tensor(kernel))
    return ops.convert_to_numpy(rows).astype("float64")


def unbind_rows(layer: Superposed, rows: Any, task: int) -> np.ndarray:
    """Returns `C_k^T R` for a superposed layer's context, as float64 array."""
    rows = ops.convert_to_tensor(rows, "float32")
    return ops.convert_to_numpy(layer.unbind_rows(rows, task)).astype("float64")
