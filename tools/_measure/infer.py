"""Counts how often `infer_task` finds the task of test images, by each method.

A network learns permuted images task after task. Then it is shown images of each task
without the task's number, one by one and in batches of one task each. `--with` sets any
option of `keras-psp run permuted`.
"""

import argparse

import keras
import numpy as np

from _measure import results
from _measure import tables
from _measure.families import read_options
from keras_psp import infer_task
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import run as run_config
from keras_psp.datasets.task_sequence import TaskSequence

METHODS = ("entropy", "energy", "gradient")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--with", nargs="+", default=[], metavar="OPTION=VALUE")
    images = {"type": int, "default": 1024, "help": "of each task"}
    parser.add_argument("--images", **images)
    parser.add_argument("--batch-size", type=int, default=32)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, asks for the tasks, and prints a table."""
    given = read_options(vars(args)["with"])
    config = PermutedConfig(**{"source": "mnist", "tasks": args.tasks, **given})
    trained = keras.callbacks.Callback()  # Keras gives it the model.
    accuracy = run_config(config, callbacks=[trained]).average_accuracy
    images = _draw_images(config.build_tasks(), args.images, config.seed)
    rows = []
    for method in METHODS:
        found = {"method": method}
        for per, size in (("example", args.images), ("batch", args.batch_size)):
            share = _share_found(trained.model, images, method, per, size)
            found[per] = round(100 * share, 2)
        rows.append(found)
    name = f"infer-{keras.backend.backend()}"
    what = "how often the task was found, in %: of single images, and of batches"
    result = results.save(args, name, what, rows, average_accuracy=accuracy)
    tables.show(tables.draw_infer, result)


def _draw_images(tasks: TaskSequence, number: int, seed: int) -> list[np.ndarray]:
    """Returns so many test images of each task."""
    drawn = []
    for task in range(tasks.num_tasks):
        batches = [inputs["image"] for inputs, _ in tasks.test(task, 1000)]
        images = np.concatenate(batches)
        rng = np.random.default_rng((seed, task))
        drawn.append(images[rng.choice(len(images), number, replace=False)])
    return drawn


def _share_found(
    model: keras.Model, images: list[np.ndarray], method: str, per: str, size: int
) -> float:
    """Returns the share of right answers, of images shown `size` at a time."""
    right = [
        np.mean(infer_task(model, each[start : start + size], method, per)[0] == task)
        for task, each in enumerate(images)
        for start in range(0, len(each) - size + 1, size)
    ]
    return float(np.mean(right))
