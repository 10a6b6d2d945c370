"""Keeps K fine-tuned networks in less and less memory, beside rivals.

A network learns upright digits. Each of K copies is trained on with the digits turned
by another angle of half a circle, as in `merge`. All are kept by
`keras_psp.superpose(budget=)`, by the same without some of its parts, and by all that
`_measure/rivals.py` holds. Everyone has the same unlabelled examples. Every task keeps
its own biases and normalizations, and its depthwise kernels in 8 bits. The floor is the
base with each task's own head.

Trained networks are kept in `--folder` and read again, and finished rows
in `--runs`. MNIST is read from `TFDS_DATA_DIR`.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from _measure import results
from _measure import tables
from _measure.merge import Network as Trained
from _measure.merge import add_network_arguments
from _measure.results import Row
from _measure.rivals import floor
from _measure.rivals import rivals
from keras_psp import datasets
from keras_psp import diagnostics
from keras_psp._reading.graph import read_model
from keras_psp._reading.plan import plan_models
from keras_psp.surgery._budget import Choice
from keras_psp.surgery._budget import best
from keras_psp.surgery._compressed import RIDGE
from keras_psp.surgery._compressed import Walk
from keras_psp.surgery._parts import Wanted

TUNED = "fine-tuned networks"
OURS = "superpose(budget=)"
# Our method without some parts of a `Form`.
WITHOUT = {"": (), ", without core": ("core",), ", without own rank": ("rank",)}
BATCH_SIZE = 2500
# Inputs, an array or a dictionary of these, and labels.
Examples = tuple[Any, np.ndarray]
Tests = Callable[[int], Examples]  # Of a task.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_network_arguments(parser)
    parser.add_argument("--tests", type=int, default=10000, help="of each task")
    budgets = [0.15, 0.2, 0.25, 0.35, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0]
    add_comparison(parser, 500, budgets, 2.1)


def add_comparison(
    parser: argparse.ArgumentParser, examples: int, budgets: list[float], most: float
) -> None:
    """Adds the options of what is compared, with these defaults."""
    parser.add_argument("--examples", type=int, default=examples, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=budgets)
    parser.add_argument("--most", type=float, default=most, help="networks, of rivals")
    systems = {"nargs": "+", "metavar": "NAME", "help": "to measure, and no others"}
    parser.add_argument("--systems", **systems)
    folder = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument("--folder", **folder, help="of trained networks")
    parser.add_argument("--runs", **folder, help="of finished rows")
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Trains or reads networks, keeps them in all ways, and prints a table."""
    measure(args, lambda seed: Networks(*read_networks(args, seed)))


def measure(args: argparse.Namespace, networks_of: Callable[[int], "Networks"]) -> None:
    """Keeps the networks of each seed in all ways, and prints a table."""
    rows = [row for s in args.seeds for row in _compare(args, s, networks_of(s))]
    name = f"frontier-{args.network}-{args.tasks}-tasks-{keras.backend.backend()}"
    what = (
        "memory in float32 networks; mean test accuracy, its share of the fine-tuned "
        "networks' and of the way there from the floor, and how often answers are "
        "those of the fine-tuned networks, all in %"
    )
    result = results.save(args, name, what, rows)
    tables.show(tables.draw_frontier, result)


def fine_tune(
    model: keras.Model,
    train: Examples,
    test: Examples,
    rate: float,
    batch_size: int,
    epochs: int = 1,
    shuffle: bool = True,
) -> float:
    """Trains a model with a rate that rises and falls; returns its test accuracy."""
    steps = epochs * len(train[1]) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=rate, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    options = {"batch_size": batch_size, "verbose": 0}
    model.fit(*train, epochs=epochs, shuffle=shuffle, **options)
    return model.evaluate(*test, **options)[1]


def read_or_train(
    folder: Path | None, name: str, model: keras.Model, train: Callable[[], float]
) -> None:
    """Reads a model's weights from a folder; or trains it, and writes them there."""
    path = folder and folder / f"{name}.weights.h5"
    if path and path.exists():
        model.load_weights(path)
        return
    print(f"{name}: {train():.1%}", flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save_weights(path)


def _compare(args: argparse.Namespace, seed: int, networks: "Networks") -> list[Row]:
    path = args.runs and args.runs / f"{args.network}-{args.tasks}-{seed}.jsonl"
    found = path.read_text().splitlines() if path and path.exists() else []
    known = {(row["system"], row["size"]): row for row in map(json.loads, found)}
    rows: list[Row] = []
    for system, size, keep in _ways(args, networks):
        if args.systems and system not in (TUNED, *args.systems):
            continue
        if (system, size) in known:
            rows.append(known[system, size])
            continue
        memory = keep()
        if memory is None:
            continue
        row = {"seed": seed, "system": system, "size": size}
        row |= {"memory": round(memory, 4), **networks.test()}
        rows.append(row)
        share = row["share"]
        print(f"{seed}: {system}, {size}: {memory:.3f}, {share:.2f} %", flush=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                print(json.dumps(row), file=file)
    return rows


def _ways(
    args: argparse.Namespace, networks: "Networks"
) -> Iterator[tuple[str, str, Callable[[], float | None]]]:
    """Yields systems and sizes, with a function that keeps networks so.

    It returns their memory in float32 networks, or `None` if that cannot be done.
    """
    yield TUNED, "", networks.keep_all
    for part, budget in itertools.product(WITHOUT, sorted(args.budgets)):
        keep = functools.partial(networks.superpose, budget, WITHOUT[part])
        yield OURS + part, f"{budget:g}", keep
    for rival in rivals(networks.num_tasks, args.most):
        keep = functools.partial(networks.keep_as, rival.keep)
        yield rival.system, rival.size, keep


def read_networks(
    args: argparse.Namespace, seed: int
) -> tuple[list[keras.Model], keras.Model, list[np.ndarray], Tests]:
    """Returns networks, their base, examples and tests; trains them if need be.

    They are in one `.npz`: the base's weights are `b0`, `b1`, ..., those of network k
    are `m{k}_0`, `m{k}_1`, ...; `x{k}` are examples, `t{k}` test images, `y{k}` labels.
    """
    keras.utils.set_random_seed(seed)
    tasks = datasets.rotating(args.source, period=2 * args.tasks, context_every=1)
    trained = Trained(args, tasks)
    path = args.folder and args.folder / f"{args.network}-{args.tasks}-{seed}.npz"
    if path and path.exists():
        found = np.load(path)
    else:
        found = _train(args, trained)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **found)

    def read(name: str) -> keras.Model:
        count = len(trained.model.weights)
        trained.model.set_weights([found[f"{name}{i}"] for i in range(count)])
        return trained.copy()

    def test(task: int) -> tuple[np.ndarray, np.ndarray]:
        images = found[f"t{task}"][: args.tests].astype("float32")
        labels = found[f"y{task}"][: args.tests]
        return images.reshape(-1, *tasks.image_shape), labels

    models = [read(f"m{k}_") for k in range(args.tasks)]
    examples = [found[f"x{k}"][-args.examples :] for k in range(args.tasks)]
    data = [x.reshape(-1, *tasks.image_shape).astype("float32") for x in examples]
    return models, read("b"), data, test


def _train(args: argparse.Namespace, trained: Trained) -> dict[str, np.ndarray]:
    found = {}

    def add(name: str) -> None:
        weights = trained.copy().get_weights()
        found.update({f"{name}{i}": weight for i, weight in enumerate(weights)})

    trained.train(0, args.epochs, 1e-3)
    base = trained.copy()
    add("b")
    for k in range(args.tasks):
        trained.model.set_weights(base.get_weights())
        trained.train(k, args.tuning_epochs, 2e-4)
        add(f"m{k}_")
        # The last examples: a network may remember the first ones best.
        found[f"x{k}"] = trained.read_train(k)[-args.examples :].astype("float16")
        images, found[f"y{k}"] = trained.read_test(k)
        found[f"t{k}"] = images.astype("float16")
    return found


class Networks:
    """K fine-tuned networks, which are kept in one way after another, and tested.

    Args:
        models: The networks.
        base: That from which they were trained.
        data: Examples for each: an array, or a dictionary of these by input.
        tests: Function of a task that returns its test images and labels.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        base: keras.Model,
        data: Sequence[Any],
        tests: Tests,
    ) -> None:
        self.num_tasks, self._tests = len(models), tests
        graphs = [read_model(model) for model in (*models, base)]
        name = graphs[0].names[0]
        self._data = data
        examples = [x if isinstance(x, dict) else {name: x} for x in data]
        self._walk = Walk(
            graphs, *plan_models(graphs, in_parts=True), True, examples, RIDGE
        )
        self._bytes = 4 * base.count_params()
        self._is_own = True
        self._own_examples = self._answer_examples()
        self._own = [self._answer(k) for k in range(self.num_tasks)]
        self._labels = [tests(k)[1] for k in range(self.num_tasks)]
        self._tuned = self._accuracy(self._own)
        self.layers = [
            Layer(self._walk, leaf) for group in self._walk.groups for leaf in group
        ]
        self.keep_as(floor)
        self._floor = self._accuracy([self._answer(k) for k in range(self.num_tasks)])

    def keep_all(self) -> float:
        """Keeps all networks as they are."""
        self._is_own = True
        return float(self.num_tasks)

    def keep_as(self, keep: Callable[["Networks"], float]) -> float:
        """Keeps them as a rival does."""
        self._is_own = False
        return (keep(self) / 8 + self._walk.count_other_bytes()) / self._bytes

    def superpose(self, budget: float, without: Sequence[str] = ()) -> float | None:
        """Keeps them as `superpose(budget=)` does, without some parts.

        Returns `None` if the budget is too small.
        """
        self._is_own = False
        menus = [_best_without(each, without) for each in self._choices]
        one = self._walk.fit_within(menus, self._bytes * budget)
        return one and diagnostics.memory(one).total / self._bytes

    @functools.cached_property
    def _choices(self) -> list[list[Choice]]:
        return [self._walk.choices(group) for group in self._walk.groups]

    def test(self) -> Mapping[str, float]:
        """Returns figures of the networks as they are kept, in %."""
        answers = [self._answer(k) for k in range(self.num_tasks)]
        accuracy = self._accuracy(answers)
        way = (accuracy - self._floor) / (self._tuned - self._floor)
        figures = {
            "accuracy": accuracy,
            "share": accuracy / self._tuned,
            "way": way,
            "agreement": np.mean(np.equal(answers, self._own)),
        }
        return {name: round(100 * float(each), 3) for name, each in figures.items()}

    def agreement(self) -> np.ndarray:
        """Returns how often each task's answers to examples are its own network's."""
        return np.mean(np.equal(self._answer_examples(), self._own_examples), 1)

    def _accuracy(self, answers):
        return np.mean(np.equal(answers, self._labels))

    def _answer(self, task):
        inputs, plain = self._tests(task)[0], self._plain(task)
        size = 256 if isinstance(inputs, dict) else BATCH_SIZE
        return plain.predict(inputs, batch_size=size, verbose=0).argmax(-1)

    def _answer_examples(self):
        return [
            self._plain(k).predict_on_batch(x).argmax(-1)
            for k, x in enumerate(self._data)
        ]

    def _plain(self, task):
        """Returns a task's own network, or as it is kept."""
        return self._walk.own(task) if self._is_own else self._walk.plain(task)


class Layer:
    """A layer of all networks, as rivals see it (see `rivals.Layer`)."""

    def __init__(self, walk: Walk, leaf: keras.layers.Layer) -> None:
        self._walk, self._leaf = walk, leaf
        self._own, _ = walk.wanted(leaf, compressed=False, with_means=True)
        self.kernels = self._own.kernels
        self.base = walk.base_rows(leaf)

    def wanted(self, compressed: bool) -> Wanted:
        if not compressed:
            return self._own
        return self._walk.wanted(self._leaf, compressed=True, with_means=True)[0]

    def keep(self, kernels: np.ndarray) -> None:
        self._walk.keep(self._leaf, kernels)


def _best_without(choices: Sequence[Choice], parts: Sequence[str]) -> list[Choice]:
    return best(
        [each for each in choices if not any(getattr(each.form, x) for x in parts)]
    )
