"""One task of a model -> a plain Keras model."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.private import own_weights
from keras_psp._core.task_layer import TaskLayer
from keras_psp._reading.counterparts import make_plain
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import check_own_task
from keras_psp._reading.graph import copy_layer
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.graph import is_graph
from keras_psp._reading.graph import pair_leaf_layers
from keras_psp.layers._block import Block
from keras_psp.layers._block import quantize
from keras_psp.layers._original import pairs_within
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.models._own_model import OwnModel
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._embeddings import floats_of
from keras_psp.surgery._embeddings import is_rounded
from keras_psp.surgery._embeddings import unrounded


def extract(model: Any, task: int | str) -> keras.Model:
    """Returns one task of a model as a plain Keras model, free of this package.

    Args:
        model: `keras_psp.models.TaskModel`, from a builder, converted, superposed or
            your own. It is not changed.
        task: Integer in `[0, num_tasks)`, or the task's name.

    Returns:
        A functional `keras.Model`, not compiled, whose layers have the same names. Its
        input is the model's only input beside the task, or a dictionary of several. Of
        a model of a class of its own, a model of that class. If the task's outputs have
        names, they are its `class_names`.

    Raises:
        TypeError: `model` takes no task, or `task` is neither an integer nor a name.
        ValueError: `task` is out of range; no layer takes a task; a layer is quantized,
            has a LoRA, is of a kind of its own, or is called with another task than the
            model's.

    Example:

    >>> import keras, keras_psp
    >>> model = keras_psp.models.mlp((8, 8, 1), num_classes=10, num_tasks=20)
    >>> plain = keras_psp.extract(model, task=7)
    >>> x = keras.ops.ones((2, 8, 8, 1))
    >>> y = model({"image": x, "task": keras.ops.array([7, 7])})
    >>> bool(keras.ops.all(keras.ops.isclose(plain(x), y, atol=1e-5)))
    True
    """
    plain: Any = build_plain(model, task)[0]
    if model.class_names is not None:
        plain.class_names = model.class_names[model.task_index(task)]
    return plain


def build_plain(
    model: Any, task: int | str, is_whole: bool = False
) -> tuple[keras.Model, list[tuple[keras.layers.Layer, keras.layers.Layer]]]:
    """Builds the model that `extract()` returns, from its arguments.

    Args:
        model: See `extract()`.
        task: See `extract()`.
        is_whole: Whether the model has outputs too that other tasks alone have.

    Returns:
        `(plain, pairs)`: that model, and every leaf layer of `model` with the one that
        stands for it.
    """
    if not isinstance(model, (TaskModel, OwnModel)):
        raise TypeError(
            "`model` must be a `TaskModel`, which takes a task. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )
    task = model.task_index(task)
    if isinstance(model, OwnModel):
        plain: Any = model.original(None if is_whole else task)
        return plain, _take_weights(model, plain, task, is_whole)
    made: dict[int, Any] = {}  # Models may share a layer, or a model.
    plain = _build(model, task, made, is_whole)
    pairs = []
    for layer, copy in pair_leaf_layers(made.values()):
        if isinstance(layer, Block):
            pairs += _take_weights(layer, copy, task, is_whole)
            continue
        pairs.append((layer, copy))
        if not isinstance(layer, TaskLayer) and not is_rounded(layer):
            copy_weights(layer, copy)
    return plain, pairs


def _take_weights(block, plain, task, is_whole):
    """Gives a block as it was one task's weights, and returns the pairs of layers."""
    pairs = [(block, plain), *pairs_within(block, plain)]
    for layer, copy in pairs:
        if isinstance(layer, TaskCopies):
            rows = [ops.convert_to_numpy(each[task]) for each in layer.task_weights]
            copy.set_weights(rows)
        elif isinstance(layer, TaskLayer):
            copy.set_weights(make_plain(layer, task, is_whole).get_weights())
        elif is_rounded(layer) and not is_rounded(copy):
            copy.set_weights([floats_of(layer)])
        else:
            if layer.quantization_mode is not None:
                quantize(copy, layer.quantization_mode, layer.quantization_config)
            for weight, own in zip(own_weights(layer), own_weights(copy), strict=True):
                own.assign(ops.convert_to_numpy(weight))  # JAX may share an array.
    return pairs


def _build(model, task, made, is_whole):
    graph = Graph(model, takes_task=True)
    inputs = graph.new_inputs()

    def plain_of(layer):
        if id(layer) not in made:
            made[id(layer)] = layer, make(layer)
        return made[id(layer)][1]

    def make(layer):
        if isinstance(layer, TaskModel):
            return _build(layer, task, made, is_whole)
        if isinstance(layer, Block):
            return layer.original()
        if isinstance(layer, TaskLayer):
            return make_plain(layer, task, is_whole)
        if is_graph(layer):
            return keras.models.clone_model(layer, clone_function=plain_of)
        return unrounded(layer) if is_rounded(layer) else copy_layer(layer)

    def call(layer, *args, **kwargs):
        if "task" in kwargs:
            check_own_task(kwargs.pop("task"), inputs["task"], layer)
        elif isinstance(layer, keras.Model) and isinstance(args[0], dict):
            given, *args = args
            if "task" in given:
                given = dict(given)
                check_own_task(given.pop("task"), inputs["task"], layer)
            args = (_alone(given), *args)
            if isinstance(kwargs.get("mask"), dict):
                mask = {k: v for k, v in kwargs["mask"].items() if k != "task"}
                kwargs["mask"] = _alone(mask)
        return layer(*args, **kwargs)

    outputs = graph.rebuild(inputs, plain_of, call)
    inputs = {name: tensor for name, tensor in inputs.items() if name != "task"}
    return keras.Model(_alone(inputs), outputs, name=model.name)


def _alone(inputs):
    """Returns the only input, or the dictionary if there are several."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs
