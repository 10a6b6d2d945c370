"""Initial weights for many tasks, each drawn anew by one layer's initializer."""

from typing import Any

import keras
from keras import ops

_OF_ANY_SHAPE = (
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Constant,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
)
_OF_FANS = (
    keras.initializers.VarianceScaling,
    keras.initializers.GlorotNormal,
    keras.initializers.GlorotUniform,
    keras.initializers.HeNormal,
    keras.initializers.HeUniform,
    keras.initializers.LecunNormal,
    keras.initializers.LecunUniform,
)


def draw_each(initializer: Any, number: int, shape: tuple, dtype: str) -> Any:
    """Returns weights for each of some tasks, of shape `(number, *shape)`.

    Keras' own initializers draw all at once, in the distribution that each would have.
    Others are called once for each task, with seeds in turn if they have one.

    Args:
        initializer: Keras initializer, or a function of a shape and a `dtype`.
        number: Positive integer, the number of tasks.
        shape: Tuple of integers, the shape of one task's weights.
        dtype: Name of a dtype.
    """
    kind = type(initializer)
    if kind in _OF_ANY_SHAPE:
        return _anew(initializer)((number, *shape), dtype=dtype)
    if kind in _OF_FANS and len(shape) > 1:
        # One dimension in front multiplies the fans, by which the scale is divided.
        wide = keras.initializers.VarianceScaling(
            initializer.scale * number,
            initializer.mode,
            initializer.distribution,
            seed=initializer.get_config()["seed"],
        )
        return wide((number, *shape), dtype=dtype)
    each = (_anew(initializer, k)(shape, dtype=dtype) for k in range(number))
    return ops.stack([ops.convert_to_tensor(values, dtype) for values in each])


def _anew(initializer, k=0):
    """An initializer with another seed; or with seed + k, if the user gave it one."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if "seed" not in config:
        return initializer
    if isinstance(config["seed"], int):
        config["seed"] += k
    return type(initializer).from_config(config)
