"""The layers inside one of another's code, and what it was before any took a task."""

import copy
import inspect
import tempfile
from typing import Any

import keras

from keras_psp._core.private import children
from keras_psp._core.task_layer import TaskLayer


class Hidden:
    """Layers or weights that Keras is not to find in an attribute of a layer."""

    def __init__(self, values: Any) -> None:
        self.values = values


def layers_within(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns all layers inside a layer or a model, each once, in a fixed order."""
    return [each for each, _ in pairs_within(layer, layer)]


def pairs_within(
    layer: keras.layers.Layer, like: keras.layers.Layer
) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """Returns the layers inside a layer with those inside one that is made like it.

    It does not look into layers that take a task: others stood there before. Nor into
    what reads text, which has more layers inside once it has read some.

    Raises:
        ValueError: The two do not hold layers alike.
    """
    found: dict[int, tuple] = {}

    def visit(layer: keras.layers.Layer, like: keras.layers.Layer) -> None:
        ours, theirs = children(layer), children(like)
        if len(ours) != len(theirs):
            raise ValueError(
                f"A copy of the layer {layer.name!r}, made from its `get_config()`, "
                f"must hold as many layers. Received: a {type(layer).__name__} with "
                f"{len(ours)} layers, {len(theirs)} in the copy"
            )
        for pair in zip(ours, theirs, strict=True):
            if id(pair[0]) not in found:
                found[id(pair[0])] = pair
                if not isinstance(pair[0], TaskLayer) and not _is_reader(pair[0]):
                    visit(*pair)

    visit(layer, like)
    return list(found.values())


def with_assets(layer: keras.layers.Layer) -> dict[tuple, Any]:
    """Returns the layers with what Keras saves neither in config nor as weights.

    These are vocabularies, of tokenizers for example. KerasHub's models hold theirs in
    attributes that Keras does not look into for layers.

    Returns:
        Dictionary of these layers by the attributes that lead to them.
    """
    found: dict[tuple, Any] = {}
    seen: set[int] = set()

    def visit(path: tuple, layer: Any) -> None:
        if id(layer) in seen or not isinstance(layer, keras.layers.Layer):
            return
        seen.add(id(layer))
        if hasattr(layer, "save_assets"):
            found[path] = layer
        for name, value in (*vars(layer).items(), *enumerate(children(layer))):
            visit((*path, name), value)

    visit((), layer)
    return found


def copy_assets(layer: keras.layers.Layer, like: keras.layers.Layer) -> None:
    """Gives a copy, made of a layer's config, the vocabularies of that layer."""
    for path, each in with_assets(layer).items():
        if is_unset(each):
            continue
        with tempfile.TemporaryDirectory() as folder:
            each.save_assets(folder)
            found = like
            for name in path:
                is_place = isinstance(name, int)
                found = children(found)[name] if is_place else vars(found)[name]
            found.load_assets(folder)


def _is_reader(layer: keras.layers.Layer) -> bool:
    """Whether a layer turns text into tokens, and has no weights."""
    return not layer.weights and bool(with_assets(layer))


def is_unset(tokenizer: Any) -> bool:
    """Returns whether a tokenizer of KerasHub's has been given no vocabulary yet."""
    held = [getattr(tokenizer, name, True) for name in ("vocabulary", "proto")]
    return any(value is None for value in held)


def as_it_is(layer: keras.layers.Layer, is_block: bool = True) -> dict[str, Any]:
    """Returns what a layer is read from again, before it is changed."""
    config = keras.saving.serialize_keras_object(layer)
    # Keras saves what a model was compiled with beside its config.
    config.pop("compile_config", None)
    if is_block and not isinstance(layer, keras.Model):
        # A block is built when it is called: it need not have a `build()`.
        config.pop("build_config", None)
    return config


def own_objects(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns classes and functions of a layer and of those inside it, by Keras' names.

    With these, what is in memory can be read again though they are not registered.
    """
    every = (layer, *layers_within(layer))
    kinds = {kind for each in every for kind in type(each).__mro__}
    layers = [kind for kind in kinds if issubclass(kind, keras.layers.Layer)]
    held = [value for each in every for value in vars(each).values()]
    return {
        keras.saving.get_registered_name(value): value
        for value in (*layers, *filter(inspect.isfunction, held))
        if value.__module__.split(".")[0] not in ("keras", "keras_psp")
    }


def read_original(as_it_was: dict[str, Any], custom_objects: Any = None) -> Any:
    """Returns a new layer of what `as_it_is()` returned."""
    return keras.saving.deserialize_keras_object(
        copy.deepcopy(as_it_was),
        custom_objects,  # Some layers empty their configs.
    )
