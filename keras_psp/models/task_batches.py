"""Batches with equally many examples of each task, for models that train all."""

import sys
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_boolean
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_list
from keras_psp._core.checks import check_names
from keras_psp._core.data import read_examples
from keras_psp._core.task_index import in_order


class TaskBatches(keras.utils.PyDataset):
    """Batches that hold `batch_size` examples of each task, one task after the other.

    In an epoch every task sees each of its examples once, in an order of its own that
    is drawn anew for each epoch. The epoch has as many steps as the longest task needs.
    A task with fewer examples is done earlier: examples of weight 0, which train
    nothing, then take its place. Like all examples without weight, they do not count in
    `weighted_metrics`, but they do in `metrics`. The last batch of a task may hold
    fewer examples, as in Keras' own `fit()`.

    Args:
        data: List of the examples of each task, in the order of the tasks; or a
            dictionary by their names. Those of a task are `(x, y)` or
            `(x, y, sample_weight)`: NumPy arrays, or dictionaries of arrays by name if
            the model has several inputs; or batches of these. They are copied.
        model: The `StackedModel` that is to be trained. It tells the names of the
            inputs and of the tasks.
        batch_size: Positive integer, the number of examples of each task in a batch.
        shuffle: Whether `fit()` draws an order of the examples for each epoch.
        seed: Non-negative integer, for the orders.
        **kwargs: `keras.utils.PyDataset` arguments.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: There are not data for each of the model's tasks; a task has no
            examples; tasks have labels of other shapes, or some have weights.

    Example:

    >>> import keras, keras_psp, numpy as np
    >>> plain = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)])
    >>> model = keras_psp.stack(plain, num_tasks=2)
    >>> data = [(np.ones((n, 4), "float32"), np.ones((n, 1))) for n in (6, 3)]
    >>> batches = keras_psp.models.TaskBatches(data, model, batch_size=4)
    >>> x, y, weight = batches[1]
    >>> x["task"].tolist(), weight.tolist()
    ([0, 0, 0, 0, 1, 1, 1, 1], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    >>> model.compile(keras_psp.optimizers.PerTask("adam"), "mse")
    >>> history = model.fit(batches, epochs=2, verbose=0)
    """

    def __init__(
        self,
        data: Sequence[Any] | Mapping[str, Any],
        model: Any,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_size = check_integer("batch_size", batch_size)
        self.shuffle = check_boolean("shuffle", shuffle)
        self.seed = check_integer("seed", seed, least=0)
        data = check_list("data", in_order("data", data, model.task_names), "examples")
        self.num_tasks = len(data)
        self.check_model(model)
        every = [
            read_examples(each, sys.maxsize, name=f"data[{i}]")
            for i, each in enumerate(data)
        ]
        inputs = [name for name in model.input if name != "task"]
        every = [(_by_name(x, inputs), y, weight) for x, y, weight in every]
        self._check_alike(every)
        self.lengths = np.array([len(_first(x)) for x, *_ in every])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._has_weights = every[0][2] is not None
        self._pads = bool((self.lengths != self.num_batches * batch_size).any())
        self._arrays = keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays),
            *(each if self._has_weights else each[:2] for each in every),
        )
        self._tasks = np.repeat(np.arange(self.num_tasks, dtype="int32"), batch_size)
        self._epoch = 0
        self._order = self._draw_order()

    @property
    def num_batches(self) -> int:
        return -(-int(self.lengths.max()) // self.batch_size)

    def __getitem__(self, index: int) -> tuple:
        places = np.arange(self.batch_size) + index * self.batch_size
        is_there = places < self.lengths[:, None]
        order = self._order[:, places.clip(max=self._order.shape[1] - 1)]
        rows = np.where(is_there, order, 0) + self._starts[:, None]
        rows = rows.ravel()
        x, y, *weight = keras.tree.map_structure(lambda each: each[rows], self._arrays)
        x = {**x, "task": self._tasks}
        if not self._pads:  # Either all batches have weights, or none has.
            return (x, y, *weight)
        there = is_there.ravel().astype("float32")
        if weight:
            ones = (1,) * (weight[0].ndim - 1)
            there = there.reshape(-1, *ones) * weight[0]
        return x, y, there

    def next_epoch(self) -> None:
        """Draws another order for each task, as `fit()` does after every epoch."""
        # Not in `on_epoch_end()`: Keras also calls that where no epoch has ended.
        if self.shuffle:
            self._epoch += 1
            self._order = self._draw_order()

    @property
    def padding(self) -> float:
        """How many places for examples there are in an epoch, for each example."""
        places = self.num_tasks * self.num_batches * self.batch_size
        return places / int(self.lengths.sum())

    def check_model(self, model: Any) -> None:
        """Raises a `ValueError` if a model has another number of tasks, or too few."""
        if model.removed_tasks:
            raise ValueError(
                "`TaskBatches` hold all tasks in order. A model from which tasks were "
                "removed takes other batches, or `add_tasks()` fills their places. "
                f"Received: {model.name!r} without its tasks {model.removed_tasks}"
            )
        if model.num_tasks != self.num_tasks:
            raise ValueError(
                f"There must be examples of each of the {model.num_tasks} tasks of "
                f"{model.name!r}. Received: those of {self.num_tasks}"
            )

    def _draw_order(self) -> np.ndarray:
        """Returns the numbers of each task's examples, those there are first."""
        longest = int(self.lengths.max())
        order = np.arange(longest)
        if not self.shuffle:
            return np.broadcast_to(order, (self.num_tasks, longest))
        rng = np.random.default_rng([self.seed, self._epoch])
        keys = rng.random((self.num_tasks, longest), "float32")
        keys[order >= self.lengths[:, None]] = 2.0  # Behind all others.
        return np.argsort(keys, axis=1)

    def _check_alike(self, every: list) -> None:
        kinds = [
            keras.tree.map_structure(
                lambda array: array.shape[1:],
                [part for part in each if part is not None],
            )
            for each in every
        ]
        for i, (each, kind) in enumerate(zip(every, kinds, strict=True)):
            if each[1] is None:
                raise ValueError(
                    "The examples of each task must have labels. Received: "
                    f"data[{i}] without"
                )
            if kind != kinds[0]:
                raise ValueError(
                    "The examples of all tasks must be of the same shapes, and all "
                    f"with weights or none. Received: data[0] of shapes {kinds[0]}, "
                    f"data[{i}] of shapes {kind}"
                )


def _by_name(x: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Returns the inputs of a task's examples by name."""
    if not isinstance(x, dict):
        values = x if isinstance(x, (list, tuple)) else [x]
        if len(values) != len(names):
            raise ValueError(
                f"The examples must hold the inputs {names}. Received: {len(values)} "
                "arrays"
            )
        x = dict(zip(names, values, strict=True))
    check_names("data", x, names)
    return {name: x[name] for name in names}


def _first(x: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(x.values()))
