"""How memory and time of a layer grow with its tasks, its width and the devices.

    seed  PSPDense with contexts that are computed from their seed
    bits  PSPDense with contexts of one bit for each input
    rank  PSPDense with a base and factors of rank 4 for each task, without contexts
    own   TaskDense: a kernel for each task

They are timed as in `cost`, beside a plain `Dense`, all of M inputs and M outputs: over
the numbers of tasks, then over the widths. A time is of one example, in a batch of one
task or of mixed ones; a training step is one of SGD.

The bytes measured are those of a formula:

    seed  4 M^2
    bits  4 M^2 + K ceil(M / 8)
    rank  4 M^2 + K 8 r M
    own   K 4 M^2

A layer of more than `--most` bytes is not built: it is given those of the formula, and
its times are the last measured ones, in proportion to the bytes. A forward pass takes
as long for any number of tasks.

On JAX, `--devices` virtual ones then share the layer of rank 4 by `layout_map()`.
"""

import argparse
import collections
import functools
import math
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_psp
from _measure import cost
from _measure import results
from _measure import tables
from _measure.results import Row
from keras_psp._core.memory import count_bytes
from keras_psp.contexts import Binary
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense

RANK = 4
FORMULAS: dict[str, Callable[[int, int], int]] = {
    "seed": lambda tasks, width: 4 * width**2,
    "bits": lambda tasks, width: 4 * width**2 + tasks * math.ceil(width / 8),
    "rank": lambda tasks, width: 4 * width**2 + tasks * 8 * RANK * width,
    "own": lambda tasks, width: tasks * 4 * width**2,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    tasks = [10**i for i in range(6)]
    widths = [128, 256, 512, 1024, 2048]
    numbers: dict[str, Any] = {"type": int, "nargs": "+"}
    parser.add_argument("--tasks", **numbers, default=tasks)
    parser.add_argument("--widths", **numbers, default=widths)
    parser.add_argument("--devices", **numbers, default=[1, 2, 4, 8])
    parser.add_argument("--width", type=int, default=256, help="for all --tasks")
    parser.add_argument("--fixed", type=int, default=1000, help="tasks, for all widths")
    parser.add_argument("--shared", type=int, default=10_000, help="tasks, on devices")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--most", type=float, default=1e9, help="bytes to build")
    parser.add_argument("--rounds", type=int, default=5)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    rows = _measure_growth(args, "tasks", [(k, args.width) for k in args.tasks])
    rows += _measure_growth(args, "width", [(args.fixed, m) for m in args.widths])
    if keras.backend.backend() == "jax":
        rows += _measure_devices(args.devices, args.shared, args.width)
    what = "bytes of a layer, on one of several devices, and microseconds an example"
    result = results.save(args, f"growth-{keras.backend.backend()}", what, rows)
    tables.show(tables.draw_growth, result)


def _build(kind: str, tasks: int, width: int) -> keras.Model:
    image = keras.Input((width,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    inputs = {"image": image, "task": task}
    if kind == "plain":
        return keras.Model(inputs, keras.layers.Dense(width, use_bias=False)(image))
    if kind == "own":
        layer = TaskDense(width, num_tasks=tasks, use_bias=False)
    elif kind == "rank":
        parts = {"context": None, "base": True, "rank": RANK}
        layer = PSPDense(width, tasks, **parts, use_bias=False)
    else:
        layer = PSPDense(width, context=Binary(tasks, storage=kind), use_bias=False)
    return keras_psp.models.TaskModel(inputs, layer(image, task))


def _measure_growth(
    args: argparse.Namespace, over: str, sizes: list[tuple[int, int]]
) -> list[Row]:
    rows: list[Row] = []
    last: dict[str, Row] = {}
    for tasks, width in sizes:
        timed = _time(args, tasks, width)
        for kind, formula in FORMULAS.items():
            size = formula(tasks, width)
            row = {"over": over, "tasks": tasks, "width": width, "layer": kind}
            row |= {"bytes": size, "extrapolated": kind not in timed}
            if kind in timed:
                last[kind] = {"bytes": size, "times": timed[kind]}
            for time, value in last[kind]["times"].items():
                longer = size / last[kind]["bytes"]
                if over == "tasks" and time.startswith("forward"):
                    longer = 1.0
                row[time] = value * longer
            rows.append(row)
    return rows


def _time(
    args: argparse.Namespace, tasks: int, width: int
) -> dict[str, dict[str, float]]:
    """Times each layer that is not too large; returns microseconds an example."""
    kinds = [kind for kind in FORMULAS if FORMULAS[kind](tasks, width) <= args.most]
    models = {kind: _build(kind, tasks, width) for kind in ("plain", *kinds)}
    for kind in kinds:
        found, expected = (
            count_bytes(models[kind].weights),
            FORMULAS[kind](tasks, width),
        )
        if found != expected:
            raise ValueError(f"{kind!r} takes {found} bytes, not {expected}")
    for model in models.values():
        model.compile(keras.optimizers.SGD(), "mse")
    rng = np.random.default_rng(results.SEED)
    x, y = rng.normal(size=(2, args.batch_size, width)).astype("float32")
    calls = cost.make_calls(models, x, y, num_tasks=tasks)
    times: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for row in cost.time_calls(calls, args.rounds):
        microseconds = 1000 * row["median_ms"] / args.batch_size
        if row["name"] in times:
            times[row["name"]][f"{row['kind']}, {row['arrangement']}"] = microseconds
    return times


def _measure_devices(numbers: list[int], tasks: int, width: int) -> list[Row]:
    """Returns the most bytes that one of several devices holds."""
    flags = f"--xla_force_host_platform_device_count={max(numbers)}"
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = flags  # Which JAX reads when a process begins.
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            held = pool.starmap(_hold, [(n, tasks, width) for n in numbers])
    finally:
        del os.environ["XLA_FLAGS"]
        if before is not None:
            os.environ["XLA_FLAGS"] = before
    shared = {"over": "devices", "tasks": tasks, "width": width, "layer": "rank"}
    return [
        {**shared, "devices": number, "bytes": most}
        for number, most in zip(numbers, held, strict=True)
    ]


def _hold(devices: int, tasks: int, width: int) -> int:
    keras.backend.clear_session()
    names = keras.distribution.list_devices()[:devices]
    mesh = keras.distribution.DeviceMesh((1, devices), ["batch", "model"], names)
    build = functools.partial(_build, "rank", tasks, width)
    layouts = keras_psp.distribution.layout_map(build, mesh)
    spread = keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch"
    )
    with spread.scope():
        model = build()
    held: collections.Counter = collections.Counter()
    for variable in model.variables:
        for shard in variable.value.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    return max(held.values())
