"""Embeddings that all tasks share, in 8 bits, by Keras' own means."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._reading.describe import get_config
from keras_psp.layers._original import layers_within


def round_embeddings(model: keras.Model) -> None:
    """Rounds the embeddings of a model, wherever they stand, with a scale a row.

    Activations stay floats. Embeddings that are computed in float16 do too: Keras
    quantizes none of these to int8.
    """
    config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    for layer in filter(_is_embedding, layers_within(model)):
        if layer.quantization_mode is None and layer.compute_dtype != "float16":
            layer.quantize("int8", config=config)


def is_rounded(layer: Any) -> bool:
    """Whether a layer is an embedding of which `floats_of()` knows the floats."""
    return _is_embedding(layer) and layer.quantization_mode == "int8"


def floats_of(layer: Any) -> np.ndarray:
    """Returns the numbers of a rounded embedding, float32 of shape `(M, N)`."""
    # Of a rounded one these are integers (Keras 3.15.1).
    integers = ops.convert_to_numpy(ops.cast(layer.embeddings, "float32"))
    scale = ops.convert_to_numpy(ops.cast(layer.embeddings_scale, "float32"))
    return integers / scale[:, None]


def rounds(layer: Any, other: Any) -> bool:
    """Whether a rounded embedding is as near to another one as rounding can tell."""
    floats = ops.convert_to_numpy(ops.cast(other.embeddings, "float32"))
    step = np.abs(floats).max(-1, keepdims=True) / 127
    return bool(np.all(np.abs(floats_of(layer) - floats) <= 0.51 * step))


def unrounded(layer: Any) -> keras.layers.Layer:
    """Returns a rounded embedding as a layer of floats, built."""
    dtype = layer.dtype_policy.name.rpartition("_from_")[-1]
    config = {**get_config(layer), "dtype": dtype, "quantization_config": None}
    plain = type(layer).from_config(config)
    plain.build()
    plain.set_weights([floats_of(layer)])
    return plain


def _is_embedding(layer: Any) -> bool:
    # Subclasses may compute something else, and one of a task is a class of its own.
    return (
        type(layer) in (keras.layers.Embedding, keras.layers.ReversibleEmbedding)
        and layer.built
        and getattr(layer, "tie_weights", True)
        and not layer.lora_enabled
    )
