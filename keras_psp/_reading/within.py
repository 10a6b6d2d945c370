"""Which layers hold the weights of a model: those inside blocks among them.

A block is a layer that is not known here and holds others, such as a transformer's. Its
own code calls these. So do a model of a class of its own, and Keras' wrappers.
"""

import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras

from keras_psp._core.private import children
from keras_psp._core.private import learned_weights
from keras_psp._core.private import own_weights
from keras_psp._core.task_layer import TaskLayer
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.describe import get_config
from keras_psp._reading.graph import copy_layer
from keras_psp._reading.graph import copy_weights
from keras_psp.layers._original import copy_assets
from keras_psp.layers._original import layers_within

# The first two use the weights of the layers inside them without calling them.
OPAQUE = (keras.layers.RNN, keras.layers.SpectralNormalization, TaskLayer)


def is_block(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer calls others, which hold weights."""
    return not isinstance(layer, OPAQUE) and any(
        each.weights for each in children(layer)
    )


def holders(
    layers: Iterable[keras.layers.Layer],
    whole: Callable[[keras.layers.Layer], bool] = lambda block: False,
) -> list[keras.layers.Layer]:
    """Returns the layers that hold the weights of layers in a graph, each once.

    Those that can be converted are among them, and blocks with weights of their own.

    Args:
        layers: Layers of a graph, or a model.
        whole: Function of such a block that returns whether it stands for the layers
            inside it. By default, it stands beside them.
    """
    found: dict[int, keras.layers.Layer] = {}
    for layer in layers:
        if can_convert(layer) or not is_block(layer):
            found[id(layer)] = layer
        else:
            found |= {id(each): each for each in _holders_within(layer, whole)}
    return list(found.values())


def _holders_within(
    block: keras.layers.Layer, whole: Callable[[keras.layers.Layer], bool]
) -> Iterator[keras.layers.Layer]:
    """Yields the layers that hold the weights of a block, that itself among them."""
    is_whole = whole(block)
    if is_whole or own_weights(block):
        yield block
    if is_whole:
        return
    for layer in children(block):
        if is_block(layer):  # Attention too: it is called in ways of Keras' own.
            yield from _holders_within(layer, whole)
        elif layer.weights:
            yield layer


def weights_of(holder: keras.layers.Layer) -> list[Any]:
    """Returns the weights that one of `holders()` holds."""
    if is_block(holder) and not can_convert(holder):
        return own_weights(holder)
    return getattr(holder, "weights", [])  # An operation has none.


def count_numbers(weights: Iterable[Any]) -> int:
    """Returns how many numbers there are in weights."""
    return sum(math.prod(weight.shape) for weight in weights)


# The first two gather statistics of a batch. One of several tasks is computed once for
# each, and would give them those of all. Modules of torch do not ask Keras for weights.
_ONE_FOR_ALL = (
    keras.layers.BatchNormalization,
    keras.layers.SpectralNormalization,
    keras.layers.TorchModuleWrapper,
)


def can_copy(holder: keras.layers.Layer) -> bool:
    """Returns whether each task can learn a copy of a layer and of all inside it.

    Constants need no copies. A model is no layer, and is looked into.
    """
    inside = [holder, *layers_within(holder)]
    return (
        not isinstance(holder, keras.Model)
        and not any(isinstance(each, _ONE_FOR_ALL) for each in inside)
        and any(map(learned_weights, inside))
    )


def copy_built(layer: keras.layers.Layer) -> Any:
    """Returns a copy of a layer, or of a model of its own class, with its weights.

    Raises:
        ValueError: Its `get_config()` does not tell how to make it again.
    """
    copy = make_again(layer)
    copy_weights(layer, copy)
    return copy


def make_again(
    layer: keras.layers.Layer, arguments: Mapping[str, Any] | None = None
) -> Any:
    """Returns a layer, or a model, of another's config, with initial weights.

    Args:
        layer: Built layer, or model of a class of its own.
        arguments: Dictionary of what is to be another in the config.

    Raises:
        ValueError: Its `get_config()` does not tell how to make it again.
    """
    try:
        if arguments:
            copy = type(layer).from_config({**get_config(layer), **arguments})
        else:
            copy = copy_layer(layer)
        if not copy.built:
            copy.build_from_config(layer.get_build_config())
            copy.built = True  # As where Keras reads a model from its file.
    except Exception as error:
        raise ValueError(
            f"A {type(layer).__name__} must be one that `from_config(get_config())` "
            "makes again: give it a `get_config()` that holds all arguments of its "
            f"`__init__()`. Received: {layer.name!r}, which fails with {error!r}"
        ) from error
    copy_assets(layer, copy)
    return copy
