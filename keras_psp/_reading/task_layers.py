"""The parts of a model that takes a task."""

from typing import Any

from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.graph import Graph
from keras_psp._reading.within import holders
from keras_psp.layers._superposed import Superposed
from keras_psp.models._own_model import OwnModel
from keras_psp.models.task_model import TaskModel


def as_task_model(model: Any) -> TaskModel:
    """Returns a model as a `TaskModel`: itself, or one around it with the same layers.

    Raises:
        TypeError: It takes no task.
        ValueError: It is of a class of its own, and its inputs are not known.
    """
    if isinstance(model, OwnModel):
        return model.as_task_model()
    if not isinstance(model, TaskModel):
        raise TypeError(
            "`model` must be a `keras_psp.models.TaskModel`. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )
    return model


def read_parts(model: Any) -> list[Any]:
    """Returns the layers of a model's graph, or the model if it has none.

    Raises:
        TypeError: It takes no task.
    """
    if isinstance(model, OwnModel):
        return [model]
    return Graph(as_task_model(model), takes_task=True).layers


def find_holders(model: Any) -> list[Any]:
    """Returns the layers that hold a model's weights, those inside blocks among them.

    Of attention these are its projections. Blocks with weights of their own are some.
    """
    return leaf_layers(holders(read_parts(model)))


def find_superposed_layers(model: Any) -> list[Superposed]:
    """Returns the superposed layers of a model, wherever they stand.

    A layer with `context=None` superposes nothing, and is not among them.

    Raises:
        TypeError: The model takes no task.
        ValueError: It has none.
    """
    layers = [
        layer
        for layer in find_holders(model)
        if isinstance(layer, Superposed) and layer.context is not None
    ]
    if not layers:
        raise ValueError(
            "`model` must have a superposed layer, such as `PSPDense`. Received: "
            f"{model.name!r}, which has none"
        )
    return layers
