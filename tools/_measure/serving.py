"""Serves one superposed model for 20 tasks, and 20 models, as SavedModels.

    python tools/measure.py serving --folder models

Models that the folder lacks are written first: the superposed one with
`keras_psp.export`, and each of its tasks, `keras_psp.extract`ed, with Keras' own
`export`. Two fresh processes have TensorFlow alone, one with the superposed model and
one with all 20 others. They tell how much their resident memory has grown since before
loading (weights, graphs and whatever TensorFlow holds for them), how long they loaded,
and requests a second. Each request is an example of a random task, alone or in batches
of 32; of 20 models each answers its share of a batch. In every round both are timed on
the same requests, the first of them in turns. A ratio is the median over the rounds.
The machine must do nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _measure import results
from _measure import tables
from _measure.results import SEED
from _measure.results import Row

BATCH_SIZES = (1, 32)
MODELS = {
    "MLP 784-1024-1024-10": ("mlp", (28, 28, 1), {"units": 1024, "depth": 2}),
    "ResNet18, width 0.25": ("resnet18", (32, 32, 3), {"width": 0.25}),
    'with `context_over="channels"`': (
        "resnet18",
        (32, 32, 3),
        {"width": 0.25, "context_over": "channels"},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--folder", type=Path, required=True, help="of the models")
    names = {"nargs": "+", "choices": MODELS, "metavar": "MODEL"}
    parser.add_argument("--models", **names, default=list(MODELS))
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=320, help="in a round")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Measures each system in a process of its own, and prints a table."""
    # In this process and those that it starts.
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="")
    if args.serve:
        _serve(args.serve)
        return
    for name in args.models:
        if not _paths(name, args)["many"][-1].exists():
            _export(name, args)
    rows = [row for name in args.models for row in _measure(name, args)]
    what = "one superposed model, and a model for each task"
    environment = results.describe_environment("tensorflow")
    result = results.save(args, "serving-tensorflow", what, rows, environment)
    tables.show(tables.draw_serving, result)


def _paths(name: str, args: argparse.Namespace) -> dict[str, list[Path]]:
    """Returns the paths of the superposed model and of the others, by system."""
    folder = args.folder / "".join(c if c.isalnum() else "_" for c in name)
    many = [folder / f"task_{task}" for task in range(args.tasks)]
    return {"one": [folder / "superposed"], "many": many}


def _export(name: str, args: argparse.Namespace) -> None:
    import keras

    import keras_psp

    paths = _paths(name, args)
    paths["one"][0].parent.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(SEED)
    builder, shape, options = MODELS[name]
    build = getattr(keras_psp.models, builder)
    model = build(shape, num_classes=10, num_tasks=args.tasks, **options)
    rng = np.random.default_rng(SEED)
    for weight in model.weights:  # Statistics that differ from task to task.
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
        elif "moving_mean" in weight.name:
            weight.assign(rng.normal(scale=0.1, size=weight.shape))
    keras_psp.export(model, paths["one"][0], infer_task=False, overwrite=True)
    for task, path in enumerate(paths["many"]):
        plain = keras_psp.extract(model, task)
        plain.export(path, format="tf_saved_model", verbose=False)


class _System:
    """A process that serves; `ask()` waits for its answer."""

    def __init__(self, paths: list[Path]) -> None:
        command = [sys.executable, sys.argv[0], "serving", "--folder", "."]
        self._process = subprocess.Popen(
            [*command, "--serve", *map(str, paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = json.loads(self._process.stdout.readline())

    def ask(self, **order: Any) -> Any:
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        if self._process.wait():
            raise RuntimeError("A process that serves has failed")


def _measure(name: str, args: argparse.Namespace) -> list[Row]:
    print(f"{name} ...", file=sys.stderr)
    paths = _paths(name, args)
    systems = {key: _System(value) for key, value in paths.items()}
    order = {"shape": MODELS[name][1], "num_tasks": args.tasks}
    first = {**order, "batch_size": 64, "batches": 1, "seed": SEED, "answers": True}
    one, many = (np.array(system.ask(**first)) for system in systems.values())
    difference = float(abs(one - many).max() / max(1, abs(many).max()))
    if not difference < 1e-4:
        raise ValueError(f"{name}: the answers differ by {difference}")
    rates = {}
    for batch_size in BATCH_SIZES:
        batches = max(1, args.requests // batch_size)
        sizes = {**order, "batch_size": batch_size, "batches": batches}
        rates[batch_size] = {key: [] for key in systems}
        for i in range(args.rounds + 2):
            for key in list(systems)[:: 1 if i % 2 else -1]:
                seconds = systems[key].ask(**sizes, seed=i)
                if i >= 2:  # Two rounds warm up.
                    rates[batch_size][key].append(batches * batch_size / seconds)
    rows = []

    def add(measure: str, find: Callable[[str], float], **more: Any) -> None:
        one, many = find("one"), find("many")
        figures = {"models": many, "superposed": one, "ratio": one / many}
        rows.append({"model": name, "measure": measure, **figures, **more})

    def grown(key: str, now: int) -> float:
        return (now - systems[key].loaded["rss_before"]) / 1e6

    loaded = {key: system.loaded for key, system in systems.items()}
    served = {key: system.ask(rss=True) for key, system in systems.items()}
    add(
        "memory after loading, MB",
        lambda key: grown(key, loaded[key]["rss_loaded"]),
        difference=difference,
    )
    add("and after serving, MB", lambda key: grown(key, served[key]))
    add("weights on disk, MB", lambda key: _disk(paths[key]) / 1e6)
    add("load, s", lambda key: loaded[key]["load"])
    for batch_size, rounds in rates.items():
        pairs = zip(rounds["many"], rounds["one"], strict=True)
        add(
            f"requests a second, batch {batch_size}",
            lambda key, rounds=rounds: statistics.median(rounds[key]),
            ratio=statistics.median(one / many for many, one in pairs),
            rounds=rounds,
        )
    for system in systems.values():
        system.close()
    return rows


def _disk(paths: list[Path]) -> int:
    files = (file for path in paths for file in path.rglob("variables/*"))
    return sum(file.stat().st_size for file in files)


def _serve(paths: list[str]) -> None:
    """Loads models, says so, and answers one order after the other."""
    import tensorflow as tf

    tf.function(tf.matmul)(tf.ones((64, 64)), tf.ones((64, 64)))
    before, start = resident_memory(), time.perf_counter()
    loaded = [tf.saved_model.load(path) for path in paths]
    calls = [model.signatures["serve"] for model in loaded]
    seconds = time.perf_counter() - start
    found = {"rss_before": before, "rss_loaded": resident_memory(), "load": seconds}
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        result = resident_memory() if order.get("rss") else _answer(calls, **order)
        print(json.dumps(result), flush=True)


def _answer(
    calls: list[Callable],
    shape: list[int],
    num_tasks: int,
    batch_size: int,
    batches: int,
    seed: int,
    answers: bool = False,
) -> float | list[list[float]]:
    """Returns how long batches took, or the answers to the last."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batches, batch_size, *shape)).astype("float32")
    tasks = rng.integers(num_tasks, size=(batches, batch_size)).astype("int32")
    start = time.perf_counter()
    for image, task in zip(images, tasks, strict=True):
        if len(calls) == 1:
            inputs = {"image": tf.constant(image), "task": tf.constant(task)}
            (output,) = calls[0](**inputs).values()
            output = output.numpy()
        else:
            output = np.empty((batch_size, 10), "float32")
            for k in np.unique(task):
                (share,) = calls[k](image=tf.constant(image[task == k])).values()
                output[task == k] = share.numpy()
    seconds = time.perf_counter() - start
    return output.tolist() if answers else seconds


def resident_memory() -> int:
    """Returns the bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
