"""Trains 1000 autoencoders together, one after the other, and by a bare `jax.vmap`.

    python tools/measure.py stack                       # trains
    python tools/measure.py stack --part curve          # 100 to 100,000 tasks
    python tools/measure.py stack --part tables         # tabular_ensemble() and tabm

Each task has an autoencoder 64-32-8-32-64, 256 examples of its own, batches of 32 and
Adam. `train` times an epoch of all tasks in `fit()` of `keras_psp.stack()`; an epoch of
each of a few models in Keras' own `fit()`, times as many as there are tasks; and, on
JAX, an epoch of `jax.vmap` of a step that does nothing else. They are timed in turns; a
ratio is the median over the rounds. A loop pays twice: "one model again" gives one
compiled model new weights for each task; "a new model each" also compiles every one.
Ten tasks are then trained alone on the batches that they had, and compared.

`curve` tells what a model of K tasks takes: the memory of its weights, an answer to 256
examples of random tasks, one more task, and a step in which each task has 8 examples.

`tables` trains `tabular_ensemble()` and the package `tabm` alike on five of
scikit-learn's data sets, and needs `pip install tabm`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from _measure import results
from _measure import tables
from _measure.results import SEED
from _measure.results import Row

SIZES = (64, 32, 8, 32, 64)
EXAMPLES, BATCH = 256, 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parts = ("train", "curve", "tables")
    parser.add_argument("--part", choices=parts, default="train")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=5, help="timed in the loop")
    sizes = [100, 1000, 10000, 100000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="K")
    most = "tasks of which a step is timed"
    parser.add_argument("--most-trained", type=int, default=10000, help=most)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Measures one part, and prints its table."""
    import keras

    backend = keras.backend.backend()
    if args.part != "tables":
        args.seeds = [SEED]
    if args.part == "tables":
        from _measure import tabular

        result = tabular.run(args)
        tables.show(tables.draw_tabular, result)
    elif args.part == "curve":
        rows = [_measure_size(number, args) for number in args.sizes]
        what = "a stacked model of K autoencoders"
        result = results.save(args, f"stack-curve-{backend}", what, rows)
        tables.show(tables.draw_stack_curve, result)
    else:
        what = "seconds for an epoch of all tasks"
        rows, equal = _train(args)
        result = results.save(args, f"stack-{backend}", what, rows, equal=equal)
        tables.show(tables.draw_stack, result)


def _autoencoder() -> Any:
    import keras

    layers = [keras.layers.Dense(n, "relu") for n in SIZES[1:-1]]
    layers.append(keras.layers.Dense(SIZES[-1]))
    return keras.Sequential([keras.Input(SIZES[:1], name="x"), *layers])


def _data(number: int, examples: int = EXAMPLES) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return rng.normal(size=(number, examples, SIZES[0])).astype("float32")


def _stacked(number: int, data: np.ndarray, batch_size: int) -> tuple[Any, Any]:
    """Returns a compiled model of all tasks, and its batches."""
    import keras

    import keras_psp

    keras.utils.set_random_seed(SEED)
    model = keras_psp.stack(_autoencoder(), num_tasks=number)
    model.compile(keras_psp.optimizers.PerTask("adam"), "mse")
    every = [(x, x) for x in data]
    return model, keras_psp.models.TaskBatches(every, model, batch_size)


def _train(args: argparse.Namespace) -> tuple[list[Row], Row]:
    import keras

    data = _data(args.tasks)
    print("stacking ...", file=sys.stderr)
    model, batches = _stacked(args.tasks, data, BATCH)
    start = [w.copy() for w in model.get_weights()]
    again = _autoencoder()
    again.compile("adam", "mse")
    given = {"batch_size": BATCH, "verbose": 0}

    def one_again() -> None:
        for k in range(args.models):
            again.set_weights([w[k] for w in start])
            for variable in again.optimizer.variables[2:]:
                variable.assign(np.zeros(variable.shape))
            again.fit(data[k], data[k], **given)

    def one_each() -> None:
        each = _autoencoder()
        each.set_weights([w[0] for w in start])
        each.compile("adam", "mse")
        each.fit(data[0], data[0], **given)

    loop = "Keras, one after the other"
    systems: dict[str, tuple[Callable, float]] = {
        "keras_psp.stack()": (lambda: model.fit(batches, verbose=0), 1),
        f"{loop}: one model again": (one_again, args.tasks / args.models),
        f"{loop}: a new model each": (one_each, args.tasks),
    }
    if keras.backend.backend() == "jax":
        systems["jax.vmap of a bare step"] = (_vmap(start, data), 1)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for i in range(args.rounds + 1):
        for name in list(systems)[:: 1 if i % 2 else -1]:
            call, times = systems[name]
            begin = time.perf_counter()
            call()
            if i:  # One round compiles, where that is done once for all tasks.
                seconds[name].append(times * (time.perf_counter() - begin))
        print(f"round {i} of {args.rounds}", file=sys.stderr)
    ours = seconds["keras_psp.stack()"]
    rows = [
        {
            "system": name,
            "seconds": statistics.median(found),
            "ratio": statistics.median(
                theirs / own for theirs, own in zip(found, ours, strict=True)
            ),
            "rounds": found,
        }
        for name, found in seconds.items()
    ]
    epochs = args.rounds + 1
    return rows, _compare(model, start, data, epochs)


def _compare(model: Any, start: list, data: np.ndarray, epochs: int) -> Row:
    """Trains ten tasks alone on the batches that they had, and compares the weights."""
    import keras

    import keras_psp

    number = len(data)
    tasks = np.linspace(0, number - 1, 10).astype(int)
    batches = keras_psp.models.TaskBatches([(x, x) for x in data], model, BATCH)
    alone, differences = _autoencoder(), []
    batch_of: dict[int, list] = {k: [] for k in tasks}
    for _ in range(epochs):
        for i in range(batches.num_batches):
            x, _ = batches[i]
            blocks = x["x"].reshape(number, BATCH, -1)
            for k in tasks:
                batch_of[k].append(blocks[k])
        batches.next_epoch()
    for k in tasks:
        alone.set_weights([w[k] for w in start])
        alone.compile(keras.optimizers.Adam(), "mse")
        for x in batch_of[k]:
            alone.train_on_batch(x, x)
        own = keras_psp.extract(model, int(k)).get_weights()
        pairs = zip(own, alone.get_weights(), strict=True)
        differences.append(max(float(abs(a - b).max()) for a, b in pairs))
    return {
        "tasks": tasks.tolist(),
        "steps": len(batch_of[tasks[0]]),
        "largest_difference": max(differences),
        "differences": differences,
    }


def _vmap(start: list, data: np.ndarray) -> Callable:
    """Returns an epoch of a step of Adam by `jax.vmap`, and nothing besides."""
    import jax
    import jax.numpy as jnp

    def loss(weights: list, x: Any) -> Any:
        h = x
        for i in range(0, len(weights), 2):
            h = h @ weights[i] + weights[i + 1]
            h = jax.nn.relu(h) if i < len(weights) - 2 else h
        return jnp.mean((h - x) ** 2)

    def step(weights: Any, m: Any, v: Any, count: Any, x: Any) -> Any:
        gradients = jax.grad(loss)(weights, x)
        m = jax.tree.map(lambda m, g: m + (g - m) * 0.1, m, gradients)
        v = jax.tree.map(lambda v, g: v + (g * g - v) * 0.001, v, gradients)
        rate = 0.001 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, m, v
        )
        return weights, m, v

    weights = [jnp.array(w) for w in start]
    zeros = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
    state = [weights, *zeros]
    each = (0, 0, 0, None, 0)
    compiled = jax.jit(jax.vmap(step, in_axes=each), donate_argnums=(0, 1, 2))
    count = 0

    def epoch() -> None:
        nonlocal state, count
        for i in range(0, data.shape[1], BATCH):
            count += 1
            x = np.ascontiguousarray(data[:, i : i + BATCH])
            state = compiled(*state, float(count), x)
        jax.block_until_ready(state)

    return epoch


def _measure_size(number: int, args: argparse.Namespace) -> Row:
    print(f"{number} tasks ...", file=sys.stderr)
    rng = np.random.default_rng(SEED)
    model, _ = _stacked(number, _data(1, 8).repeat(number, 0), 8)
    row: Row = {"tasks": number, "bytes": 4 * model.count_params()}
    x = rng.normal(size=(256, SIZES[0])).astype("float32")
    task = rng.integers(number, size=256)
    answer = _median(
        lambda: model.predict_on_batch({"x": x, "task": task}), args.rounds
    )
    row["answer"] = answer
    if number <= args.most_trained:
        model, batches = _stacked(number, _data(number, 8), 8)
        row["step"] = _median(lambda: model.fit(batches, verbose=0), args.rounds)
    row["add"] = _median(lambda: model.add_tasks(1), args.rounds)
    return row


def _median(function: Callable, rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):  # One warms up.
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
