"""Adds Keras' LoRA to the kernels, as if the kernels had been trained themselves."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.private import own_weights
from keras_psp._reading.build_again import build_again
from keras_psp._reading.describe import get_config
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp.layers._original import layers_within

# Where layers keep the two factors.
_FACTORS = (
    "lora_kernel_a",
    "lora_kernel_b",
    "lora_embeddings_a",
    "lora_embeddings_b",
)


def merge_lora(read: Graph | OwnCode) -> Graph | OwnCode:
    """Returns what is read of a model whose kernels hold what a LoRA adds to them.

    Without a LoRA, that is the model itself. Layers that are quantized stay as they
    are, with their LoRA.

    Args:
        read: What `read_model()` returns. The model is not changed.

    Reference:
        [Hu et al., 2021](https://arxiv.org/abs/2106.09685), section 4.1.
    """
    if not any(map(_holds_lora, read.layers)):
        return read

    def make(layer: Any) -> Any:
        if not _holds_lora(layer):
            return None
        config = get_config(layer)
        for name in ("lora_rank", "lora_alpha"):
            config.pop(name, None)
        # It is built when it is called: a block need not have a `build()`.
        return type(layer).from_config(config)

    merged, pairs = build_again(read, make, {})
    for layer, new in pairs:
        for value, weight in zip(_merged(layer), own_weights(new), strict=True):
            weight.assign(ops.convert_to_numpy(value))
    return merged


def _holds_lora(layer: Any) -> bool:
    return any(map(_has_lora, (layer, *layers_within(layer))))


def _has_lora(layer: Any) -> bool:
    has_lora = getattr(layer, "lora_enabled", False)
    return has_lora and getattr(layer, "quantization_mode", None) is None


def _merged(layer: keras.layers.Layer) -> list:
    """Returns a layer's own weights, those of a LoRA in the kernel."""
    if not _has_lora(layer):
        return own_weights(layer)
    factors = [id(getattr(layer, name, None)) for name in _FACTORS]
    _, *others = (each for each in own_weights(layer) if id(each) not in factors)
    name = "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
    return [getattr(layer, name), *others]
