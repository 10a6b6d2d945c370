"""Records the inputs of K models' layers, in as few runs as memory allows."""

import functools
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_psp._reading.listen import Listener
from keras_psp._reading.rows import input_rows
from keras_psp.layers._superposed import Superposed

MOST_BYTES = 2**29
# Of a layer's rows in a task's examples, so many are kept for each number of a row, and
# at least so many. A convolution has one for each place of an image: they are drawn
# from images that have `SPREAD` times as many.
ROWS_PER_NUMBER, LEAST_ROWS, SPREAD = 64, 2**14, 2
# Of one task: an array of a layer's input rows for each batch.
Rows = list[np.ndarray]


class Inputs:
    """Keeps the input rows of some layers, of all tasks.

    Args:
        listener: Of the plain model that takes all tasks' weights in turn.
        layers: Pairs of a superposed layer, which tells how inputs become rows, and the
            layer that stands for it in the plain model.
        batches: For each task a list of batches.
        take_weights: Function of a task, and of whether they are those that have been
            fitted, that gives the plain model its weights.
    """

    def __init__(
        self,
        listener: Listener,
        layers: Sequence[tuple[Superposed, keras.layers.Layer]],
        batches: Sequence[list[dict[str, np.ndarray]]],
        take_weights: Callable[[int, bool], None],
    ) -> None:
        self._listener, self._layers = listener, layers
        self._batches, self._take_weights = batches, take_weights
        self._probes: dict[tuple[int, ...], Any] = {}
        # By place, for the tasks' own weights and for those that have been fitted.
        self._kept: dict[bool, dict[int, list[Rows]]] = {False: {}, True: {}}

    def own(self, place: int, task: int) -> Rows:
        """Returns the rows of the layer at a place, in a task's own model."""
        behind = range(place + 1, len(self._layers))
        return self._rows([place, *behind], task, fitted=False)

    def fitted(self, place: int, task: int, beside: Sequence[int]) -> Rows:
        """Returns the rows of a layer after those before it, which have been fitted.

        Args:
            place: Integer, the layer's place among the `layers`.
            task: Integer.
            beside: Places of layers behind it, whose inputs do not depend on it.
        """
        return self._rows([place, *beside], task, fitted=True)

    def forget_fitted(self, but: Sequence[int]) -> None:
        """Lets go of fitted layers' rows but those at some places: others change."""
        kept = self._kept[True]
        self._kept[True] = {place: kept[place] for place in but if place in kept}

    def _rows(self, places: list[int], task: int, fitted: bool) -> Rows:
        """Returns the first layer's rows; those of others are kept if there is room."""
        first = places[0]
        if first not in self._kept[fitted]:
            self._kept[fitted] = {}  # Before new ones are made.
            totals = itertools.accumulate(self._sizes[place] for place in places)
            chosen = [p for p, n in zip(places, totals, strict=True) if n <= MOST_BYTES]
            if not chosen:
                return self._run([first], task, fitted)[0]
            every = [self._run(chosen, k, fitted) for k in range(len(self._batches))]
            for place, rows in zip(chosen, zip(*every, strict=True), strict=True):
                self._kept[fitted][place] = list(rows)
        return self._kept[fitted][first][task]

    @functools.cached_property
    def _sizes(self) -> list[int]:
        """The bytes that each layer's rows take, of all tasks."""
        calls = self._probe(range(len(self._layers))).predict_on_batch(
            self._batches[0][0]
        )
        one = keras.tree.map_structure(lambda x: x[:1], calls)
        numbers = [sum(map(_count, batches)) for batches in self._batches]
        sizes = []
        for (layer, _), each in zip(self._layers, one, strict=True):
            places, width = input_rows(layer, each)[:, 0].shape
            most = _most_rows(width)
            rows = sum(min(places * number, most) for number in numbers)
            sizes.append(4 * rows * width)
        return sizes

    def _run(self, places: Sequence[int], task: int, fitted: bool) -> list[Rows]:
        self._take_weights(task, fitted)
        probe, found = self._probe(places), []
        total = sum(map(_count, self._batches[task]))
        for batch in self._batches[task]:
            calls = zip(places, probe.predict_on_batch(batch), strict=True)
            share = _count(batch) / total
            found.append([_draw(self._layers[p][0], x, share) for p, x in calls])
        return [list(rows) for rows in zip(*found, strict=True)]

    def _probe(self, places: Sequence[int]) -> Any:
        key = tuple(places)
        if key not in self._probes:
            layers = [self._layers[place][1] for place in places]
            self._probes[key] = self._listener.probe(layers)
        return self._probes[key]


def _count(batch: dict[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))


def _most_rows(width: int) -> int:
    return max(ROWS_PER_NUMBER * width, LEAST_ROWS)


def _draw(layer: Superposed, calls: Any, share: float) -> np.ndarray:
    """Returns a batch's share of a layer's rows, the same ones of each task's model."""
    calls, found = keras.tree.flatten(calls), []
    for x in calls:
        places, width = input_rows(layer, x[:1])[:, 0].shape
        most = int(np.ceil(share * _most_rows(width) / len(calls)))
        if places * len(x) <= most:
            found.append(input_rows(layer, x)[:, 0])
            continue
        rng = np.random.default_rng(0)
        x = x[_choose(rng, len(x), -(-SPREAD * most // places))]
        found.append(input_rows(layer, x)[_choose(rng, places * len(x), most), 0])
    return np.concatenate(found)


def _choose(rng: np.random.Generator, number: int, most: int) -> np.ndarray:
    """Returns the places of at most so many of a number of things, in order."""
    return np.sort(rng.choice(number, min(number, most), replace=False))
