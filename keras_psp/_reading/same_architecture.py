"""Whether models are of one architecture."""

import functools
import inspect
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.describe import describe_layer
from keras_psp._reading.describe import tensors_in
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import is_graph
from keras_psp._reading.same_value import same_value
from keras_psp._reading.within import holders
from keras_psp._reading.within import weights_of


def check_same_architecture(graphs: Sequence[Any]) -> None:
    """Raises a `ValueError` if models do not compute the same but for their weights.

    Their layers must be of the same types, with the same arguments, functions and
    weight shapes, and must be called in the same way with the same constants.

    Args:
        graphs: List of what `read_model()` returns.

    Raises:
        ValueError: They do not, or a layer of one is quantized.
    """
    for layer in (layer for graph in graphs for layer in holders(graph.layers)):
        if is_altered(layer):
            raise ValueError(
                "A layer that is quantized cannot be superposed. "
                f"Received: {layer.name!r}"
            )
    first, *others = graphs
    if isinstance(first, OwnCode):
        whole = describe_layer(first.model)
        for graph in others:
            if not same_value(whole, describe_layer(graph.model)):
                raise ValueError(
                    "The models must be of one architecture. "
                    f"Received: {first.name!r} and {graph.name!r}, which differ"
                )
        return
    first_calls = _Calls(first, list(first.inputs))
    described = [first_calls.describe(layer) for layer in first.layers]
    for graph in others:
        calls = _Calls(graph, _order_inputs(first, graph))
        pairs = zip_longest(first.layers, graph.layers)
        for i, (layer, other) in enumerate(pairs):
            if (
                layer is None
                or other is None
                or not same_value(described[i], calls.describe(other))
            ):
                raise ValueError(
                    "The models must be of one architecture. The first layer that "
                    f"differs is {(layer or other).name!r}. Received: "
                    f"{_name_layer(layer)} and {_name_layer(other)}"
                )
        if not same_value(calls.found, first_calls.found):
            raise ValueError(
                "The models must be of one architecture. Their layers are the same, "
                "but are called otherwise, or with other constants. "
                f"Received: {first.name!r} and {graph.name!r}"
            )


def all_equal(layers: Sequence[keras.layers.Layer], whole: bool = False) -> bool:
    """Returns whether layers, of one architecture, hold equal weights.

    Args:
        layers: List of layers that stand for one another.
        whole: Whether those of the layers inside them count too.
    """
    weights = [layer.weights if whole else weights_of(layer) for layer in layers]
    to_numpy = ops.convert_to_numpy
    return all(
        np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True)
        for others in weights[1:]
        for a, b in zip(weights[0], others, strict=True)
    )


def _name_layer(layer):
    return f"{layer.name!r} ({type(layer).__name__})" if layer else "no layer"


def _order_inputs(first, graph):
    """Returns the names of a model's inputs in the order of another model's."""
    if graph.inputs.keys() == first.inputs.keys():
        return list(first.inputs)
    by_position = not (graph.is_named or first.is_named) or len(graph.inputs) == 1
    if by_position and len(graph.inputs) == len(first.inputs):
        return list(graph.inputs)
    raise ValueError(
        "The models must be of one architecture. Their inputs have other names. "
        f"Received: {list(first.inputs)} and {list(graph.inputs)}"
    )


class _Calls:
    """Which layer, or operation, of a model is called with what, in order.

    Tensors are described by a number, shape and dtype, everything else by itself.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        places: dict[int, int] | None = None,
    ):
        self._tensors: dict[int, Any] = {}
        self._by_layer: dict[int, Any] = {}
        self._places = places or {id(each): i for i, each in enumerate(graph.layers)}
        inputs = graph.new_inputs()
        start = [self._number(inputs[name]) for name in names]
        calls = []

        def record(layer, *args, **kwargs):
            outputs = layer(*args, **kwargs)
            calls.append(self._describe_call(layer, args, kwargs, outputs))
            return outputs

        outputs = graph.rebuild(inputs, replace=lambda layer: layer, call=record)
        self.found = start, calls, keras.tree.map_structure(self._number, outputs)

    def describe(self, layer: keras.layers.Layer) -> Any:
        return describe_layer(layer, self._by_layer.get(id(layer), ()))

    def _number(self, value):
        if not isinstance(value, keras.KerasTensor):
            return value
        # The tensor is kept, and so its id.
        number, _ = self._tensors.setdefault(id(value), (len(self._tensors), value))
        return "tensor", number, tuple(value.shape), value.dtype

    def _describe_call(self, layer, args, kwargs, outputs):
        given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
        given = {name: value for name, value in given.items() if value is not None}
        if is_graph(layer):
            inner = Graph(layer, takes_task=True)
            names = sorted(inner.inputs) if inner.is_named else list(inner.inputs)
            within = _Calls(inner, names, self._places)
            for each, calls in within._by_layer.items():
                self._by_layer.setdefault(each, []).extend(calls)
            what = within.found
        elif isinstance(layer, keras.layers.Layer):
            self._by_layer.setdefault(id(layer), []).append((given, outputs))
            what = self._places[id(layer)]
        else:
            what = type(layer), _describe_operation(layer, given, outputs)
        # Flat, for the only input of a model may have any name.
        flat = keras.tree.flatten((given, outputs))
        return what, sorted(given), [self._number(each) for each in flat]


def _describe_operation(operation, given, outputs):
    """Returns the attributes of an operation, its axis counted from the front."""
    attributes = {
        name: value
        for name, value in vars(operation).items()
        if name not in _of_every_operation()
    }
    tensors = tensors_in(given)
    if attributes.get("axis") is None or len(tensors) < len(keras.tree.flatten(given)):
        return attributes
    ranks = {len(x.shape) for x in tensors}
    rank = max(*ranks, len(tensors_in(outputs)[0].shape))
    # What adds a dimension counts in its outputs. `take()` of two tensors does not.
    adds_one = len(tensors) == 1 or type(operation).__name__ == "Stack"
    if len(ranks) == 1 and (rank in ranks or adds_one):
        axes = np.ravel(attributes["axis"])
        attributes["axis"] = [int(axis) % rank for axis in axes]
    return attributes


@functools.cache
def _of_every_operation():
    return {*vars(keras.Operation())}
