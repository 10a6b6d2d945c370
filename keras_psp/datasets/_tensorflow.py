"""TensorFlow as the data engine of every backend."""

import warnings
from typing import Any

import keras


def import_tensorflow() -> Any:
    """Imports TensorFlow; hides the GPUs from it if another backend uses them."""
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "keras_psp.datasets reads its data with tf.data. Install it with: "
            'pip install "keras-psp[data]"'
        ) from error
    if keras.backend.backend() != "tensorflow" and tf.config.get_visible_devices("GPU"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            warnings.warn(
                "TensorFlow was in use before keras_psp.datasets and keeps its GPU "
                "memory. Load the datasets first.",
                stacklevel=2,
            )
    return tf
