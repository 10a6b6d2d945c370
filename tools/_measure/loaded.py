"""What examples/tenants is compared with: a cache of loaded Keras models."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import keras
import numpy as np


class LoadedModels:
    """Answers with each tenant's own Keras model; those last asked for are kept.

    It has of `Tenants` what the server needs for answers.

    Args:
        base: Not used; the files tell the architecture.
        folder: Not used.
        models: The folder with `NAME.keras` of each tenant.
        size: How many models are kept loaded.
    """

    def __init__(
        self, base: keras.Model, folder: str, models: str, size: int, **_: Any
    ) -> None:
        self._folder, self._size = Path(models), size
        self._models: OrderedDict[str, keras.Model] = OrderedDict()
        self._lock = threading.Lock()

    def predict_many(self, requests: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        """Answers requests, one after the other."""
        with self._lock:
            return [
                np.asarray(self._model(name).predict_on_batch(x.astype("float32")))
                for name, x in requests
            ]

    def _model(self, name: str) -> keras.Model:
        if name not in self._models:
            if len(self._models) == self._size:
                self._models.popitem(last=False)
            path = self._folder / f"{name}.keras"
            self._models[name] = keras.models.load_model(path, compile=False)
        self._models.move_to_end(name)
        return self._models[name]
