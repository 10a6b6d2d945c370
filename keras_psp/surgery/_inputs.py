"""What the layers of K models are called with, in as few runs as memory allows."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_psp._reading.listen import Listener
from keras_psp._reading.rows import input_rows
from keras_psp.layers._superposed import Superposed

MOST_BYTES = 2**29
# Of one task: an array of a layer's input rows for each batch.
Rows = list[np.ndarray]


class Inputs:
    """Keeps the input rows of some layers, of all tasks.

    Args:
        listener: Of the plain model that takes all tasks' weights in turn.
        layers: Pairs of a superposed layer, which tells how inputs become rows, and the
            layer that stands for it in the plain model.
        batches: For each task a list of batches.
        take_weights: Function of a task that gives the plain model its weights.
    """

    def __init__(
        self,
        listener: Listener,
        layers: Sequence[tuple[Superposed, keras.layers.Layer]],
        batches: Sequence[list[dict[str, np.ndarray]]],
        take_weights: Callable[[int], None],
    ) -> None:
        self._listener, self._layers = listener, layers
        self._batches, self._take_weights = batches, take_weights
        self._probes: dict[tuple[int, ...], Any] = {}
        self._kept: dict[int, list[Rows]] = {}

    def rows(self, place: int, task: int, others: Sequence[int] = ()) -> Rows:
        """Returns a layer's rows for a task.

        Args:
            place: Integer, the layer's place among the `layers`.
            task: Integer.
            others: Places of layers that will be asked for next, of the same weights.
        """
        if place not in self._kept:
            self._kept = {}  # Before new ones are made.
            chosen = self._choose([place, *others])
            if not chosen:
                return self._run([place], task)[0]
            every = [self._run(chosen, k) for k in range(len(self._batches))]
            for i, each in enumerate(chosen):
                self._kept[each] = [rows[i] for rows in every]
        return self._kept[place][task]

    def forget(self, but: Sequence[int]) -> None:
        """Lets go of what is kept of all layers but these: weights have changed."""
        self._kept = {place: self._kept[place] for place in but if place in self._kept}

    def _choose(self, places: list[int]) -> list[int]:
        """Returns how many of these layers can be kept."""
        self._take_weights(0)
        batch = self._batches[0][0]
        number = sum(len(next(iter(x.values()))) for xs in self._batches for x in xs)
        chosen, total = [], 0
        calls = self._probe(places).predict_on_batch(batch)
        for place, each in zip(places, calls, strict=True):
            one = [keras.tree.map_structure(lambda x: x[:1], x) for x in each]
            total += number * input_rows(self._layers[place][0], one).nbytes
            if total > MOST_BYTES:
                break
            chosen.append(place)
        return chosen

    def _run(self, places: list[int], task: int) -> list[Rows]:
        self._take_weights(task)
        probe, found = self._probe(places), []
        for batch in self._batches[task]:
            calls = zip(places, probe.predict_on_batch(batch), strict=True)
            found.append([input_rows(self._layers[p][0], x)[:, 0] for p, x in calls])
        return [list(rows) for rows in zip(*found, strict=True)]

    def _probe(self, places: list[int]) -> Any:
        key = tuple(places)
        if key not in self._probes:
            layers = [self._layers[place][1] for place in places]
            self._probes[key] = self._listener.probe(layers)
        return self._probes[key]
