"""What a layer computes, in a form in which two layers can be compared, or copied.

Keras' `get_config()` is not enough. It names a function but does not hold it, it counts
an axis from whichever end the user did, and it leaves out what a user's own layer
keeps in plain attributes.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.private import children
from keras_psp.layers._original import is_unset
from keras_psp.layers._original import with_assets

# Attributes that Keras gives a model which trains, evaluates or predicts.
DONE_WITH_DATA = (
    "_eval_epoch_iterator",
    "_initial_epoch",
    "_jax_state",
    "_jax_state_synced",
    "_torch_params",
)
PLAIN = (bool, int, float, complex, str, bytes, np.generic, np.ndarray, type(None))


def describe_layer(
    layer: keras.layers.Layer, calls: Sequence[tuple[Any, Any]] = ()
) -> tuple[Any, ...]:
    """Returns what two layers that compute the same have in common.

    Names, initializers, seeds and `trainable` are left out: they do not change what a
    trained layer computes.

    Args:
        layer: Keras layer.
        calls: List of pairs, the symbolic inputs and outputs of each of its calls. With
            them `axis=-1` and the same axis counted from the front are described alike,
            and so are a shape with a -1 and the same shape without.

    Returns:
        Nested tuples, lists and dictionaries, to be compared by `same_value()`.
    """
    is_hub = type(layer).__module__.startswith("keras_hub.")
    try:
        config = _without_names(get_config(layer))
    except (AttributeError, NotImplementedError, TypeError):
        if not is_hub and type(layer) is not keras.layers.Identity:
            raise
        config = {}
    # Its preprocessors make layers when they are first used, as their configs say.
    by_config = is_hub and bool(config) and not layer.weights
    if not config:  # Some of KerasHub's have none (0.32), but hold their arguments.
        config = {
            name: value
            for name, value in _own_attributes(layer)
            if isinstance(value, (types.FunctionType, type))
        }
    for name in config:
        held = getattr(layer, name, None)
        if _is_of_torch(held):  # Its config holds its weights.
            config[name] = type(held), str(held)
    _count_from_the_front(layer, config, calls)
    if isinstance(layer, keras.layers.EinsumDense):
        _rename_letters(config)
    vocabulary = getattr(layer, "get_vocabulary", None)
    return (
        type(layer),
        config,
        [tuple(weight.shape) for weight in layer.weights],
        own_functions(layer),
        {} if by_config else plain_state(layer),
        [] if by_config else [describe_layer(each) for each in children(layer)],
        vocabulary() if vocabulary and not config.get("vocabulary") else None,
        [
            (path, None if is_unset(each) else describe_layer(each))
            for path, each in with_assets(layer).items()
            if path
        ],
    )


def get_config(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns a layer's config, with the user's own functions in it as they are.

    Keras would write the name of a function, which cannot be found again unless it is
    registered, and cannot tell two functions of one name apart.
    """
    kind: Any = type(layer)
    defaults = _arguments(kind)
    held = {name: getattr(layer, name, None) for name in defaults}
    functions = {
        name: value
        for name, value in held.items()
        if is_own_function(value) and not _is_method_of(layer, value)
    }
    try:
        for name in functions:
            setattr(layer, name, keras.activations.linear)
        config = layer.get_config() or {}  # One of KerasHub's returns nothing (0.32).
    finally:
        for name, value in functions.items():
            setattr(layer, name, value)
    for name, value in functions.items():
        config[name] = value
        if value is defaults[name]:  # Such a layer may take none but names for others.
            del config[name]
    return config


def own_functions(layer: keras.layers.Layer) -> dict[str, Callable]:
    """Returns the functions of the user's own that a layer holds, by attribute.

    Initializers are left out: they do not change what a trained layer computes.
    """
    return {
        name: value
        for name, value in _own_attributes(layer)
        if is_own_function(value) and not _is_method_of(layer, value)
    }


def _is_method_of(layer, value):
    """Whether a value is a method of the layer itself, which its class tells."""
    return getattr(value, "__self__", None) is layer


def is_own_function(value: Any) -> bool:
    """Returns whether a value is a function that Keras cannot put into a config."""
    return (
        callable(value)
        and not isinstance(value, type)
        and not hasattr(value, "get_config")
        and not _is_of_torch(value)
        and not is_of_keras(value)
    )


def _is_of_torch(value: Any) -> bool:
    """Whether a value is one of torch's modules that is no layer of Keras'."""
    return hasattr(value, "state_dict") and not isinstance(value, keras.layers.Layer)


def is_of_keras(value: Any) -> bool:
    """Returns whether a function, or a layer's class, comes with Keras."""
    module = getattr(value, "__module__", None)
    if isinstance(value, types.FunctionType):
        # `functools.wraps()` gives a function the `__module__` of another.
        module = value.__globals__.get("__name__")
    elif not isinstance(value, type):
        module = type(value).__module__
    return (module or "").split(".")[0] == "keras"


def plain_state(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns what a layer of the user's own holds in plain attributes.

    These are numbers, strings and arrays, and lists and dictionaries of them. Keras'
    own layers are described by their configs.
    """
    if is_of_keras(type(layer)):
        return {}
    return {name: value for name, value in _own_attributes(layer) if _is_plain(value)}


def tensors_in(values: Any) -> list[keras.KerasTensor]:
    """Returns the symbolic tensors in a nested structure, in order."""
    flat = keras.tree.flatten(values)
    return [each for each in flat if isinstance(each, keras.KerasTensor)]


def _own_attributes(layer):
    return [
        (name, value)
        for name, value in vars(layer).items()
        if name not in _of_every_layer() and not _is_initial(name)
    ]


def _is_initial(name):
    """Whether what has this name says only what a layer's weights begin with."""
    return "initializer" in name


@functools.cache
def _of_every_layer():
    x = keras.Input(())
    model = keras.Model(x, x)
    model.compile(loss="mse")
    # What a model has done with data leaves more than compiling it.
    done = {"stop_training", "stop_evaluating", "stop_predicting", *DONE_WITH_DATA}
    return {*vars(keras.layers.Layer()), *vars(model), *done}


@functools.cache
def _arguments(kind):
    """Returns the defaults of a class's arguments, and of those of its bases."""
    return {
        name: parameter.default
        for base in reversed(kind.__mro__)
        for name, parameter in inspect.signature(base).parameters.items()
    }


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (keras.KerasTensor, keras.Variable)):
        return False  # On TensorFlow, variables are tensors too.
    is_array = ops.is_tensor(value) and hasattr(value, "__array__")
    return is_array or isinstance(value, PLAIN)


def _without_names(config, is_layer=True):
    if isinstance(config, dict):
        if "input_layers" in config:  # Of a functional model.
            config = _by_place(config)
        # The name of a dtype policy says what it does; the name of a layer does not.
        is_layer = is_layer or "trainable" in config or "dtype" in config
        left_out = {
            "trainable",
            "seed",
            "build_config",
            *(["name"] if is_layer else []),
        }
        return {
            key: _without_names(value, is_layer=False)
            for key, value in config.items()
            if key not in left_out and not _is_initial(key)
        }
    if isinstance(config, (list, tuple)):
        return [_without_names(value, is_layer=False) for value in config]
    return config


def _by_place(config):
    """A functional model's config, with places in place of the names of layers."""
    places = {layer["name"]: i for i, layer in enumerate(config["layers"])}

    def replace(value):
        if isinstance(value, dict):
            return {key: replace(each) for key, each in value.items()}
        if not isinstance(value, (list, tuple)):
            return value
        if len(value) == 3 and isinstance(value[0], str):  # Layer, node and tensor.
            return [places[value[0]], *value[1:]]
        return [replace(each) for each in value]

    def without_names(layer):
        nodes = [
            _with_histories(node, replace) for node in layer.get("inbound_nodes", ())
        ]
        return {**layer, "name": places[layer["name"]], "inbound_nodes": nodes}

    ends = {key: replace(config[key]) for key in ("input_layers", "output_layers")}
    return {**config, **ends, "layers": [*map(without_names, config["layers"])]}


def _with_histories(node, replace):
    """A call's arguments, with another reference to where each tensor comes from."""
    if isinstance(node, dict):
        return {
            key: replace(each)
            if key == "keras_history"
            else _with_histories(each, replace)
            for key, each in node.items()
        }
    if isinstance(node, (list, tuple)):
        return [_with_histories(each, replace) for each in node]
    return node


def _count_from_the_front(layer, config, calls):
    if not is_of_keras(type(layer)):
        return  # What its axis counts is not known.
    called_with = [tensors_in(inputs) for inputs, _ in calls]
    if not calls or not all(called_with):
        return
    if config.get("axis") is not None:
        config["axis"] = [
            sorted(int(axis) % len(first.shape) for axis in np.ravel(config["axis"]))
            for first, *_ in called_with
        ]
    if config.get("axes") is not None:  # `Dot`: one axis of each of its two inputs.
        axes = np.broadcast_to(config["axes"], 2)
        config["axes"] = [
            [int(axis) % len(x.shape) for axis, x in zip(axes, tensors, strict=True)]
            for tensors in called_with
        ]
    if "target_shape" in config:
        shapes = [tensors_in(outputs)[0].shape[1:] for _, outputs in calls]
        if not any(None in shape for shape in shapes):
            config["target_shape"] = shapes


def _rename_letters(config):
    """Names the axes of an `EinsumDense` by their order; its kernel tells the sizes."""
    letters = dict.fromkeys(re.findall("[A-Za-z]", config["equation"]))
    new = str.maketrans({x: chr(97 + i) for i, x in enumerate(letters)})
    config["equation"] = config["equation"].replace(" ", "").translate(new)
    config["bias_axes"] = sorted((config["bias_axes"] or "").translate(new))
    config.pop("output_shape")
