"""What a layer is called with, wherever it stands in a model."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.task_layer import find_task_layers
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import inputs_of_layers
from keras_psp._reading.graph import is_graph
from keras_psp._reading.graph import read_model


class Listener:
    """Listens to the layers of a model.

    A layer in the model's graph is asked by a compiled model up to it. A layer inside a
    block is listened to while the whole model runs.

    Args:
        model: Built Keras model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._inputs: dict[str, Any] = {}
        self._called: dict[int, Any] = {}
        # A part of a model would open no scope for the layers inside blocks.
        scoped = any(layer.in_block for layer in find_task_layers(model))
        if is_graph(model) and not scoped:
            graph = Graph(model, takes_task=True)
            self._inputs, self._called = inputs_of_layers(graph)

    def probe(self, layer: keras.layers.Layer) -> Any:
        """Returns what has a `predict_on_batch()` that returns a layer's inputs.

        It takes a dictionary of the model's inputs by name.
        """
        if id(layer) in self._called:
            return keras.Model(self._inputs, self._called[id(layer)])
        return _Heard(self._model, layer)


class _Heard:
    """Runs a model as it is, and returns what one of its layers was called with."""

    def __init__(self, model, layer):
        self._model, self._layer = model, layer
        takes_task = bool(find_task_layers(model))
        self._give = (lambda x: x) if takes_task else read_model(model).give

    def predict_on_batch(self, x: Any) -> list[np.ndarray]:
        """Returns an array for each call of the layer."""
        layer, heard = self._layer, []

        def call(inputs, *args, **kwargs):
            heard.append(inputs)
            return type(layer).call(layer, inputs, *args, **kwargs)

        # No attribute for Keras to track.
        vars(layer)["call"] = call
        try:
            self._model(self._give(x), training=False)
        finally:
            del vars(layer)["call"]
        if not heard:
            raise ValueError(
                "The layer must be called when its model is. Received: "
                f"{layer.name!r}, which is not"
            )
        try:
            return [ops.convert_to_numpy(each) for each in heard]
        except Exception as error:
            raise ValueError(
                "A layer that is called in a loop of a compiled program, where its "
                "inputs cannot be seen, cannot be fitted to data. "
                f"Received: {layer.name!r}"
            ) from error
