"""Embeddings that all tasks share, in 8 bits, by Keras' own means."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._reading.describe import get_config
from keras_psp.layers._original import layers_within


def round_embeddings(model: keras.Model) -> None:
    """Rounds the embeddings of a model, wherever they stand, with a scale a row.

    Activations stay floats.
    """
    config = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    for layer in _embeddings(model):
        if layer.quantization_mode is None:
            layer.quantize("int8", config=config)


def is_rounded(layer: Any) -> bool:
    """Whether a layer is an embedding of which `floats_of()` knows the floats."""
    return _is_embedding(layer) and layer.quantization_mode is not None


def floats_of(layer: Any) -> Any:
    """Returns the numbers of a rounded embedding, as an array of floats."""
    # Its attribute `embeddings` are integers (Keras 3.15.1).
    return ops.convert_to_numpy(layer(np.arange(layer.input_dim, dtype="int32")))


def rounds(layer: Any, other: Any) -> bool:
    """Whether a rounded embedding is as near to another one as rounding can tell."""
    floats = ops.convert_to_numpy(other.embeddings)
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


def _embeddings(model: keras.Model) -> Iterator[Any]:
    return filter(_is_embedding, layers_within(model))


def _is_embedding(layer: Any) -> bool:
    # Subclasses may compute something else, and one of a task is a class of its own.
    return (
        type(layer) in (keras.layers.Embedding, keras.layers.ReversibleEmbedding)
        and layer.built
        and getattr(layer, "tie_weights", True)
        and not layer.lora_enabled
    )
