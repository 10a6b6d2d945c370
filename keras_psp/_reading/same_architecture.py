"""Whether models are of one architecture."""

import inspect
from itertools import zip_longest

import keras
import numpy as np
from keras import ops

from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import is_graph


def check_same_architecture(graphs):
    """Raises a `ValueError` if models are not of one architecture.

    And if a layer of one is quantized or has a LoRA.

    Args:
        graphs: List of `Graph`s.
    """
    for layer in (layer for graph in graphs for layer in graph.layers):
        if is_altered(layer):
            raise ValueError(
                "A layer that is quantized or has a LoRA cannot be superposed. "
                f"Received: {layer.name!r}"
            )
    first, *others = graphs
    calls = _describe_calls(first)
    for graph in others:
        for layer, other in zip_longest(first.layers, graph.layers):
            if layer is None or other is None or _describe(layer) != _describe(other):
                name = (layer or other).name
                raise ValueError(
                    "The models must be of one architecture. The first layer that "
                    f"differs is {name!r}."
                )
        if _shapes(graph) != _shapes(first) or _describe_calls(graph) != calls:
            raise ValueError(
                "The models must be of one architecture. Their layers are alike, but "
                f"those of {graph.name!r} are called otherwise."
            )


def all_equal(layers):
    """Whether layers, of one architecture, hold equal weights."""
    weights = [getattr(layer, "weights", ()) for layer in layers]
    return all(
        np.array_equal(*map(ops.convert_to_numpy, pair))
        for others in weights[1:]
        for pair in zip(weights[0], others, strict=True)
    )


def _shapes(graph):
    return [(tensor.shape, tensor.dtype) for tensor in graph.inputs.values()]


def _describe(layer):
    """What two layers must have in common: all but names and beginnings."""
    shapes = [tuple(weight.shape) for weight in layer.weights]
    config = _without_names(layer.get_config())
    if "axis" in config:  # Which may be counted from either end.
        rank = len(layer.get_build_config()["input_shape"])
        config["axis"] = [axis % rank for axis in np.atleast_1d(config["axis"])]
    return type(layer), config, shapes


def _without_names(config):
    if isinstance(config, dict):
        return {
            key: _without_names(value)
            for key, value in config.items()
            if key not in ("name", "trainable", "seed", "build_config")
            and "initializer" not in key
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


def _describe_calls(graph):
    """Returns which layer is called with what, in order."""
    places = {id(layer): i for i, layer in enumerate(graph.layers)}
    tensors, calls = {}, []

    def describe(value):
        if isinstance(value, keras.KerasTensor):
            tensors.setdefault(
                id(value), (len(tensors), value)
            )  # Keeps it, and its id.
            return f"tensor {tensors[id(value)][0]}"
        return repr(value)

    def record(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        if is_graph(layer):
            what = _describe_calls(Graph(layer, takes_task=True))
        elif isinstance(layer, keras.layers.Layer):
            what = places[id(layer)]
        else:
            settings = {
                name: repr(value)
                for name, value in vars(layer).items()
                if name != "name" and not name.startswith("_")
            }
            what = type(layer).__name__, settings
        given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
        given = {name: value for name, value in given.items() if value is not None}
        # Flat, for a model's only input may have a name, or none.
        called = list(map(describe, keras.tree.flatten((given, outputs))))
        calls.append((what, sorted(given), called))
        return outputs

    inputs = graph.new_inputs()
    for tensor in inputs.values():
        describe(tensor)
    outputs = graph.rebuild(inputs, replace=lambda layer: layer, call=record)
    return calls, keras.tree.map_structure(describe, outputs)
