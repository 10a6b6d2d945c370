"""The card: the description that `export()` writes beside a model."""

import importlib.metadata
import json
from typing import Any

import keras

from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.graph import Graph
from keras_psp._reading.within import holders
from keras_psp.exporting._formats import FORMATS
from keras_psp.layers._superposed import Superposed


def describe(
    model: keras.Model,
    format: str | None,
    output_names: list[str],
    endpoints: list[str],
) -> dict[str, Any]:
    """Returns the card of a model, of types that JSON can hold.

    Args:
        model: Functional Keras model whose inputs are a dictionary.
        format: Name of a format, or `None` for Keras' own.
        output_names: Names of its outputs, in order.
        endpoints: Names of its endpoints.

    Returns:
        Dictionary.
    """
    import keras_psp

    layers = leaf_layers(holders(Graph(model, takes_task=True).layers))
    packages = FORMATS[format].packages.values() if format else ()
    serialize = keras.saving.serialize_keras_object
    card = {
        "name": model.name,
        "num_tasks": getattr(model, "num_tasks", None),
        "task_names": getattr(model, "task_names", None),
        "removed_tasks": getattr(model, "removed_tasks", ()),
        "class_names": getattr(model, "class_names", None),
        "contexts": {
            # In blocks, many layers have one name.
            (each.path if each.in_block else each.name): serialize(each.context)
            for each in layers
            if isinstance(each, Superposed) and each.context is not None
        },
        "inputs": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
            for name, tensor in model.input.items()
        },
        "outputs": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
            for name, tensor in zip(output_names, model.outputs, strict=True)
        },
        "endpoints": endpoints,
        "format": format,
        "backend": keras.backend.backend(),
        "versions": {
            "keras_psp": keras_psp.__version__,
            "keras": keras.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
    return json.loads(json.dumps(card))  # Without tuples, as it will be read.
