"""Builds a model once more, with other layers in some places."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import is_graph
from keras_psp._reading.graph import read_model
from keras_psp._reading.within import make_again
from keras_psp.layers._original import pairs_within

Pairs = Sequence[tuple[Any, Any]]


def build_again(
    read: Graph | OwnCode,
    make: Callable[[keras.layers.Layer], keras.layers.Layer | None],
    arguments: Mapping[str, Any],
) -> tuple[Graph | OwnCode, Pairs]:
    """Builds a model once more.

    Args:
        read: What `read_model()` returns of the model. It is not changed.
        make: Function of a layer in a graph that returns another for its place, not
            built, or `None` to keep it, for both models.
        arguments: What to change in the config of a class of the model's own. Such a
            model is made by its config, with all layers inside it.

    Returns:
        `(again, pairs)`: what `read_model()` returns of the new model; and each layer
        that has another in its place with that, which has initial weights; with those
        inside it.
    """
    made: list[tuple] = []
    if isinstance(read, OwnCode):
        made.append((read.model, make_again(read.model, arguments)))
        again: Any = made[0][1]
    else:

        def other(layer: Any) -> Any:
            if is_graph(layer):
                before = len(made)
                copy = keras.models.clone_model(layer, clone_function=other)
                return copy if len(made) > before else layer
            new = make(layer) if isinstance(layer, keras.layers.Layer) else None
            if new is None:
                return layer
            made.append((layer, new))
            return new

        inputs = read.new_inputs()
        outputs = read.rebuild(inputs, other)
        given: Any = inputs if read.is_named else list(inputs.values())
        again = keras.Model(given, outputs, name=read.name)
    pairs = [each for pair in made for each in (pair, *pairs_within(*pair))]
    return read_model(again), pairs
