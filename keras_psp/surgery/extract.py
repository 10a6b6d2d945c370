"""One task of a model -> a plain Keras model."""

import keras

from keras_psp.contexts.task_index import check_task
from keras_psp.layers.takes_task import TakesTask
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery.counterparts import make_plain
from keras_psp.surgery.graph import copy_layer
from keras_psp.surgery.graph import new_inputs


def extract(model, task) -> keras.Model:
    """Returns one task of a model as a plain Keras model, free of this package.

    Args:
        model: `keras_psp.models.TaskModel`: a builder's, a converted or a superposed
            one, or your own. It stays as it is.
        task: Integer in `[0, num_tasks)`.

    Returns:
        A functional `keras.Model`, not compiled, of the same layers by name. Input: the
        model's only one beside the task; or a dictionary, if there are more.

    Raises:
        TypeError: `model` takes no task, or `task` is not an integer.
        ValueError: `task` is out of range; a layer is quantized, has a LoRA, or is of a
            kind of its own.

    Example:

    >>> import keras, keras_psp
    >>> model = keras_psp.models.mlp((8, 8, 1), num_classes=10, num_tasks=20)
    >>> plain = keras_psp.extract(model, task=7)
    >>> x = keras.ops.ones((2, 8, 8, 1))
    >>> y = model({"image": x, "task": keras.ops.array([7, 7])})
    >>> bool(keras.ops.all(keras.ops.isclose(plain(x), y, atol=1e-5)))
    True
    """
    if not isinstance(model, TaskModel):
        raise TypeError(
            "`model` must be a `TaskModel`, which takes a task. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )
    task = check_task(task, model.num_tasks)
    if not isinstance(task, int):
        raise TypeError(f"`task` must be an integer. Received: task={task!r}")
    inputs = new_inputs(model)
    pairs = []

    def replace(layer):
        if isinstance(layer, TaskModel):
            return extract(layer, task)
        if isinstance(layer, TakesTask):
            return make_plain(layer, task)
        plain = copy_layer(layer)
        pairs.append((layer, plain))
        return plain

    def call(layer, *args, task=None, **kwargs):
        given, *args = args
        if isinstance(layer, keras.Model) and isinstance(given, dict):
            given = {name: x for name, x in given.items() if name != "task"}
            given = _alone(given)
        return layer(given, *args, **kwargs)

    # As a plain model, so that the copy is one.
    graph = keras.Model(model.input, model.output, name=model.name)
    outputs = keras.models.clone_model(
        graph, input_tensors=inputs, clone_function=replace, call_function=call
    ).output
    for layer, plain in pairs:
        if getattr(layer, "weights", None):
            plain.set_weights(layer.get_weights())
    inputs.pop("task")
    return keras.Model(_alone(inputs), outputs, name=model.name)


def _alone(inputs):
    """The only one of the inputs, or all."""
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs
