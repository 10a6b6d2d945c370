"""Text, which KerasHub's models take where others take arrays."""

from typing import Any

import keras
import numpy as np


def is_text(x: Any) -> bool:
    """Returns whether inputs are strings, or arrays or tensors of strings."""
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(
        isinstance(each, (str, bytes))
        or getattr(getattr(each, "dtype", None), "kind", "") in ("O", "S", "U")
        or str(getattr(each, "dtype", "")) == "<dtype: 'string'>"
        for each in leaves
    )


def as_arrays(x: Any) -> Any:
    """Returns text, or a dictionary of text, as NumPy arrays of strings."""
    if isinstance(x, dict):
        return {name: np.asarray(value) for name, value in x.items()}
    return np.asarray(x)


def without_text(model: Any, data: Any) -> Any:
    """Returns data with what the model's own preprocessor makes of text in them.

    Args:
        model: Any model. KerasHub's have a preprocessor.
        data: `x`, or a tuple `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        Data of the same form, whose `x` are arrays by the names of the model's inputs;
        `data` itself, if `x` is no text or there is no preprocessor.
    """
    x, *labels = data if isinstance(data, tuple) else (data,)
    if getattr(model, "preprocessor", None) is None or not is_text(x):
        return data
    given = model.preprocess_samples(x)
    x, _, _ = keras.utils.unpack_x_y_sample_weight(given)
    return (x, *labels) if isinstance(data, tuple) else x
