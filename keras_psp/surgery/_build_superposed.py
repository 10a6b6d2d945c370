"""A copy of a model in which some layers are superposed."""

from collections.abc import Callable
from collections.abc import Iterable

import keras

from keras_psp._core.task_layer import TaskLayer
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import copy_layer
from keras_psp._reading.graph import is_graph
from keras_psp._reading.graph import pair_leaf_layers
from keras_psp.models.task_model import TaskModel


def build_superposed(
    graph: Graph,
    chosen: Iterable[keras.layers.Layer],
    new_layer: Callable[[keras.layers.Layer], keras.layers.Layer],
) -> tuple[TaskModel, list[tuple[keras.layers.Layer, keras.layers.Layer]]]:
    """Builds a model once more, with a task input and superposed layers.

    Args:
        graph: The model's `Graph`.
        chosen: The layers to superpose, those of the models inside it among them.
        new_layer: Function of each of these that returns its counterpart, not built.

    Returns:
        `(superposed, pairs)`: a `TaskModel` without the model's weights, and every leaf
        layer of the model with the one that stands for it.
    """
    chosen = {id(layer) for layer in chosen}
    made = {}  # Models may share a layer, or a model.

    def superposed_of(layer):
        if id(layer) not in made:
            made[id(layer)] = layer, make(layer)
        return made[id(layer)][1]

    def make(layer):
        if is_graph(layer):
            inner = Graph(layer, takes_task=True)
            if any(id(each) in chosen for each in inner.layers):
                return build(inner)
            return keras.models.clone_model(layer, clone_function=superposed_of)
        if id(layer) in chosen:
            return new_layer(layer)
        return copy_layer(layer)

    def build(graph):
        task = keras.Input((), dtype="int32", name="task")
        inputs = graph.new_inputs()

        def call(layer, *args, **kwargs):
            if isinstance(layer, TaskLayer):
                return layer(*args, task=task, **kwargs)
            if isinstance(layer, TaskModel):
                given, *args = args
                given = Graph(layer, takes_task=True).name_inputs(given)
                return layer({**given, "task": task}, *args, **kwargs)
            return layer(*args, **kwargs)

        outputs = graph.rebuild(inputs, superposed_of, call, also=[task])
        return TaskModel({**inputs, "task": task}, outputs, name=graph.name)

    superposed = build(graph)
    return superposed, pair_leaf_layers(made.values())
