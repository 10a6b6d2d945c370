"""What taking models apart and building them once more has in common."""

import keras
import numpy as np
from keras import ops


def as_functional(model):
    """Returns a built functional or sequential model as a functional one of a dict.

    The inputs go by the names in the model's own dictionary or, if it has none, by
    their tensors' names.

    Raises:
        TypeError: It is not a Keras model.
        ValueError: It has not been built, is neither functional nor sequential, or
            takes a task already.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a Keras model. Received: model={model!r} "
            f"(of type {type(model).__name__})"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "The model must be built, by an `Input` or a call. Received: "
            f"{model.name!r}, which is not"
        )
    if not is_graph(model):
        raise ValueError(
            "The model must be functional or sequential: of another, Keras knows no "
            f"graph of layers. Received: {model.name!r}, a {type(model).__name__}"
        )
    inputs = named_inputs(model)
    if "task" in inputs:
        raise ValueError(
            "The model must not have an input named 'task' already. "
            f"Received: {model.name!r}"
        )
    return keras.Model(inputs, output_of(model), name=model.name)


def is_graph(layer):
    """Whether a layer is a functional or sequential model, built."""
    return isinstance(layer, keras.Model) and getattr(layer, "inputs", None) is not None


def named_inputs(model):
    """Returns a model's symbolic inputs as a dictionary."""
    if not isinstance(model, keras.Sequential) and isinstance(model.input, dict):
        return dict(model.input)
    return {tensor.name: tensor for tensor in model.inputs}


def output_of(model):
    """Returns a model's symbolic outputs, in their structure."""
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output


def new_inputs(model):
    """Returns a new `keras.Input` for each of `named_inputs()`."""
    return {
        name: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        for name, tensor in named_inputs(model).items()
    }


def copy_layer(layer):
    """Returns a layer's copy, not built; an operation that is no layer stays itself."""
    if not isinstance(layer, keras.layers.Layer):
        return layer
    return type(layer).from_config(layer.get_config())


def all_layers(model):
    """Returns a model's layers and those of the models inside it, without inputs."""
    found = []
    for layer in model.layers:
        if is_graph(layer):
            found += all_layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            found.append(layer)
    return list({id(layer): layer for layer in found}.values())


def inputs_of_layers(model):
    """Returns what each layer is called with, and each inside a model inside it.

    Args:
        model: Functional or sequential model.

    Returns:
        `(inputs, called)`: new symbolic inputs, a dictionary; and by the layers' `id`
        the list of symbolic tensors that it is called with, for given these inputs.
    """
    inputs, called = new_inputs(model), {}

    def record(layer, *args, **kwargs):
        if is_graph(layer):
            given = args[0]
            inner, within = inputs_of_layers(layer)
            if not isinstance(given, dict):
                given = dict(zip(inner, keras.tree.flatten(given), strict=True))
            for each, tensors in within.items():
                called.setdefault(each, []).extend(keras.Model(inner, tensors)(given))
        elif isinstance(layer, keras.layers.Layer):
            called.setdefault(id(layer), []).append(args[0])
        return layer(*args, **kwargs)

    # As a plain model, and the very layers, called once more.
    keras.models.clone_model(
        keras.Model(named_inputs(model), output_of(model)),
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=record,
    )
    return inputs, called


def as_inputs(model, given):
    """Returns what a model is given, an array, a dictionary or batches, as arrays.

    Args:
        model: What `as_functional()` returned.
        given: Inputs as Keras takes them, or an iterable of batches of them.

    Returns:
        Dictionary of arrays, by the names of the model's inputs.
    """
    if not isinstance(given, dict) and not hasattr(given, "shape"):
        batches = [as_inputs(model, batch) for batch in given]
        return {
            name: np.concatenate([batch[name] for batch in batches])
            for name in batches[0]
        }
    if not isinstance(given, dict):
        given = {next(iter(model.input)): given}
    return {name: ops.convert_to_numpy(given[name]) for name in model.input}
