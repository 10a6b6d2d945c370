"""Layers and functions of the user's own, on their way into the writing process."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_psp._core.private import flatten_layers

_FILE = "objects.pickle"
_KNOWN = ("keras", "keras_hub", "keras_psp")  # Packages that the process imports.


def custom_objects(model: keras.Model) -> dict[str, Any]:
    """Returns the custom classes and functions of a model, by their names in a config.

    Raises:
        ValueError: One of them cannot be found by its name, or is a lambda.
    """
    config = keras.saving.serialize_keras_object(model)
    # What a model was compiled with is not exported.
    config.pop("compile_config", None)
    # A converted layer is of a subclass of its own class, and of mixins known there.
    classes = {
        each.__name__: each
        for layer in flatten_layers(model)
        for each in type(layer).__mro__
        if each.__module__.split(".")[0] not in _KNOWN
    }
    names = set(_custom_names(config))
    found = {
        name: keras.saving.get_registered_object(name) or classes.get(name)
        for name in names
    }
    lost = sorted(str(name) for name, value in found.items() if value is None)
    if lost:
        raise ValueError(
            "The process that writes the file must know the model's custom objects. "
            "Lambdas cannot be given to it. Register other functions and classes with "
            "`@keras.saving.register_keras_serializable()`. "
            f"Received: {model.name!r} with {', '.join(lost)}"
        )
    return found


def _custom_names(config: Any) -> Iterator[str]:
    """Yields the names of objects in a config that Keras and keras_psp do not know."""
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _custom_names(value)
    elif isinstance(config, dict):
        name = config.get("class_name")
        package = (config.get("module") or "").split(".")[0]
        if name == "function":
            # One of KerasHub is known as soon as the layer that uses it is.
            if not str(config["config"]).startswith("keras_hub>"):
                yield str(config["config"])
        elif name == "__lambda__":
            yield "a lambda"
        elif isinstance(name, str) and not name.startswith("__"):
            if package not in _KNOWN:
                yield config.get("registered_name") or name
        for value in config.values():
            yield from _custom_names(value)


def pickle_objects(model: keras.Model, objects: dict[str, Any], folder: str) -> None:
    """Writes objects into a folder, for `unpickle_objects()` in another process.

    Raises:
        ValueError: One of them cannot be pickled.
    """
    if not objects:
        return
    import cloudpickle  # Pickles what the main program or a notebook defines, too.

    try:
        content = cloudpickle.dumps(objects)
    except Exception as error:
        raise ValueError(
            "The model's custom objects cannot be pickled for the process that writes "
            f"the file. Received: {model.name!r} with {', '.join(sorted(objects))}. "
            f"The error was: {error}"
        ) from error
    # Modules of the user's own are imported from where they were.
    path = cloudpickle.dumps([os.path.abspath(each) for each in sys.path])
    Path(folder, _FILE).write_bytes(path + content)


def unpickle_objects(folder: str) -> dict[str, Any]:
    """Returns the objects in a folder, by the names that a config has for them."""
    path = Path(folder, _FILE)
    if not path.exists():
        return {}
    import cloudpickle

    with path.open("rb") as file:
        sys.path += [each for each in cloudpickle.load(file) if each not in sys.path]
        return cloudpickle.load(file)
