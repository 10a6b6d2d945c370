"""The superposed layers of a model."""

from typing import Any

from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.graph import Graph
from keras_psp.layers._superposed import Superposed
from keras_psp.models.task_model import TaskModel


def check_task_model(model: Any) -> None:
    """Raises a `TypeError` if a model takes no task."""
    if not isinstance(model, TaskModel):
        raise TypeError(
            "`model` must be a `keras_psp.models.TaskModel`. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )


def find_superposed_layers(model: TaskModel) -> list[Superposed]:
    """Returns the superposed layers of a model and of the models inside it.

    A layer with `context=None` superposes nothing, and is not among them.

    Raises:
        TypeError: `model` is not a `TaskModel`.
        ValueError: It has none.
    """
    check_task_model(model)
    layers = leaf_layers(Graph(model, takes_task=True).layers)
    layers = [
        layer
        for layer in layers
        if isinstance(layer, Superposed) and layer.context is not None
    ]
    if not layers:
        raise ValueError(
            "`model` must have a superposed layer, such as `PSPDense`. Received: "
            f"{model.name!r}, which has none"
        )
    return layers
