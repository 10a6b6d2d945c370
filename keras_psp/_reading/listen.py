"""What a layer is called with, wherever it stands in a model."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.private import calls_replaced
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

    def probe(self, layers: Sequence[keras.layers.Layer]) -> Any:
        """Returns what has a `predict_on_batch()` that returns layers' inputs.

        It takes a dictionary of the model's inputs by name. It returns a list of an
        array for each call, for each of the layers.
        """
        if all(id(layer) in self._called for layer in layers):
            return _Asked(self._inputs, [self._called[id(layer)] for layer in layers])
        return _Heard(self._model, layers)


class _Asked:
    """A compiled model up to layers in a graph."""

    def __init__(self, inputs, called):
        # A dictionary: of a list of one list, Keras makes that one.
        self._model = keras.Model(inputs, {str(i): x for i, x in enumerate(called)})

    def predict_on_batch(self, x: Any) -> list[list[np.ndarray]]:
        found = self._model.predict_on_batch(x)
        return [found[str(i)] for i in range(len(found))]


class _AllHeard(BaseException):
    """Ends a run of a model; no `except Exception` of its code or of Keras keeps it."""


class _Heard:
    """Runs a model as it is, and returns what its layers were called with.

    Its first run tells how often each is called. Later ones end when all have been
    called as often.
    """

    def __init__(self, model, layers):
        self._model, self._layers = model, layers
        self._num_calls: dict[int, int] = {}
        takes_task = bool(find_task_layers(model))
        self._give = (lambda x: x) if takes_task else read_model(model).give

    def predict_on_batch(self, x: Any) -> list[list[np.ndarray]]:
        heard: dict[int, list] = {id(layer): [] for layer in self._layers}

        def hear(layer, call, args, kwargs):
            heard[id(layer)].append(args[0] if args else kwargs["inputs"])
            known = self._num_calls.items()
            if known and all(len(heard[key]) >= count for key, count in known):
                raise _AllHeard
            return call(*args, **kwargs)

        with calls_replaced(self._layers, hear), contextlib.suppress(_AllHeard):
            self._model(self._give(x), training=False)
        found = [self._read(layer, heard[id(layer)]) for layer in self._layers]
        self._num_calls = {key: len(calls) for key, calls in heard.items()}
        return found

    def _read(self, layer, calls):
        if not calls:
            raise ValueError(
                "The layer must be called when its model is. Received: "
                f"{layer.name!r}, which is not"
            )
        try:
            return [ops.convert_to_numpy(each) for each in calls]
        except Exception as error:  # Each backend has its own.
            raise ValueError(
                "A layer that is called in a loop of a compiled program, where its "
                "inputs cannot be seen, cannot be fitted to data. "
                f"Received: {layer.name!r}"
            ) from error
