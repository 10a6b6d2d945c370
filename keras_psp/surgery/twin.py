"""A model's twin, in which some layers are superposed."""

import keras

from keras_psp.layers.takes_task import TakesTask
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery.counterparts import make_superposed
from keras_psp.surgery.graph import all_layers
from keras_psp.surgery.graph import as_functional
from keras_psp.surgery.graph import copy_layer
from keras_psp.surgery.graph import is_graph
from keras_psp.surgery.graph import named_inputs
from keras_psp.surgery.graph import new_inputs


def build_twin(model, chosen, contexts, base):
    """Builds a model once more, with a task input and superposed layers.

    Args:
        model: Functional or sequential model, built.
        chosen: Its layers to superpose, and those of the models inside it.
        contexts: List of contexts, at least one for each of them; they are taken.
        base: Boolean, whether they are to have base kernels.

    Returns:
        `(twin, pairs)`: a `TaskModel` without the model's weights, and every layer of
        the model with the one that stands for it.
    """
    pairs = []
    return _build(model, {id(layer) for layer in chosen}, contexts, base, pairs), pairs


def _build(model, chosen, contexts, base, pairs):
    model = as_functional(model)
    task = keras.Input((), dtype="int32", name="task")
    inputs = {**new_inputs(model), "task": task}

    def replace(layer):
        if is_graph(layer) and any(id(each) in chosen for each in all_layers(layer)):
            return _build(layer, chosen, contexts, base, pairs)
        if id(layer) in chosen:
            num_tasks = contexts[-1].num_tasks
            twin = make_superposed(layer, num_tasks, contexts.pop, base)
        else:
            twin = copy_layer(layer)
        pairs.append((layer, twin))
        return twin

    def call(layer, *args, **kwargs):
        if isinstance(layer, TakesTask):
            return layer(*args, task=task, **kwargs)
        if isinstance(layer, TaskModel):
            given, *args = args
            if not isinstance(given, dict):
                names = [name for name in layer.input if name != "task"]
                given = dict(zip(names, keras.tree.flatten(given), strict=True))
            return layer({**given, "task": task}, *args, **kwargs)
        return layer(*args, **kwargs)

    with_task = TaskModel({**named_inputs(model), "task": task}, model.output)
    outputs = keras.models.clone_model(
        with_task, input_tensors=inputs, clone_function=replace, call_function=call
    ).output
    return TaskModel(inputs, outputs, name=model.name)
