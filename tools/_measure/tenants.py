"""Serves 1000 tenants by examples/tenants, and by an LRU cache of loaded Keras models.

    python tools/measure.py tenants

Each tenant has an autoencoder 64-32-8-32-64. Memory: how much a process grows by all of
them in `Tenants`, with room for as many, and by loaded Keras models that have answered
once, in processes of their own; `--loaded` of these are loaded, and their memory is
scaled to all. The median of `--processes` counts. Requests: the server of
examples/tenants on the loopback interface, 50 clients, random tenants; at first a
request for each tenant that warms up. The cache is behind the same server. With
`--changes` requests a tenant of another name is added, replaced and removed every
second. Every answer is compared with that of the tenant's weights. The clients have the
same two cores.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _measure import results
from _measure import tables
from _measure.results import Row
from _measure.serving import resident_memory

EXAMPLE = results.ROOT / "examples" / "tenants"
PARTS = ("memory", "proxy", "cache", "direct")
OURS, DIRECT, CACHE = "one model, Ray's proxy", "one model, direct", "LRU of {} models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--loaded", type=int, default=50, help="models for memory")
    parser.add_argument("--processes", type=int, default=3, help="for memory")
    parser.add_argument("--cache", type=int, default=50, help="models in the LRU")
    asked = [25, 50, 60, 100, 1000]
    parser.add_argument("--asked", type=int, nargs="+", default=asked)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row")
    changes = "requests during which tenants come and go"
    parser.add_argument("--changes", type=int, default=100_000, help=changes)
    parts = {"nargs": "+", "choices": PARTS, "default": PARTS}
    parser.add_argument("--parts", **parts, help="what to measure")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Measures, and prints the tables."""
    import keras

    sys.path.insert(0, str(EXAMPLE))
    if args.memory:
        _load(args.memory[0], args.memory[1], args)
        return
    if args.name and "memory" in args.parts and len(args.parts) > 1:
        raise SystemExit("--name is for one result: give --parts memory, or others")
    memory: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        base, every, hash_ = _make(folder, args.tenants)
        if "memory" in args.parts:
            memory = [_memory(system, folder, args) for system in ("one", "many")]
        requests = _ask(folder, base, every, hash_, args)
    del args.memory
    environment = results.describe_environment("ray", "fastapi")
    backend = keras.backend.backend()
    for name, what, rows, draw in (
        ("tenants-memory", "memory", memory, tables.draw_tenants_memory),
        ("tenants", "requests a second", requests, tables.draw_tenants),
    ):
        if rows:
            what = f"{what} of a server for many tenants"
            result = results.save(args, f"{name}-{backend}", what, rows, environment)
            tables.show(draw, result)


def _make(folder: str, number: int) -> tuple[Any, dict, str]:
    """Writes all tenants, as what `Tenants` reads and as Keras models."""
    import load

    base = load.build()
    every = load.make_tenants(base, number)
    hash_ = load.fill(base, f"{folder}/tenants", every)
    base.save(f"{folder}/base.keras")
    start = base.get_weights()
    Path(folder, "models").mkdir()
    for name, weights in every.items():
        base.set_weights(weights)
        base.save(f"{folder}/models/{name}.keras")
    base.set_weights(start)
    return base, every, hash_


def _memory(system: str, folder: str, args: argparse.Namespace) -> Row:
    """Returns how much processes of its own grow, the median of some."""
    command = [sys.executable, sys.argv[0], "tenants", "--memory", system, folder]
    sizes = ["--tenants", str(args.tenants), "--loaded", str(args.loaded)]
    found = []
    for _ in range(args.processes):
        done = subprocess.run([*command, *sizes], stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(system, found[-1]["grown"], file=sys.stderr)
    found.sort(key=lambda row: row["grown"])
    return found[len(found) // 2]


def _load(system: str, folder: str, args: argparse.Namespace) -> None:
    """Loads tenants, lets each answer once, and prints the memory."""
    import keras
    from tenants import Tenants

    from _measure.loaded import LoadedModels

    base = keras.models.load_model(f"{folder}/base.keras")
    x = np.zeros((1, *base.input_shape[1:]), "float32")
    base.predict_on_batch(x)  # What Keras and its backend need at all,
    base.get_config()  # TensorFlow too, which Keras imports here if it is installed.
    before = resident_memory()
    number = args.tenants if system == "one" else args.loaded
    if system == "one":
        model: Any = Tenants(base, f"{folder}/tenants", room=number)
    else:
        model = LoadedModels(base, "", f"{folder}/models", number)
    for i in range(number):
        model.predict_many([(f"tenant-{i}", x)])
    gc.collect()
    grown = resident_memory() - before
    row = {
        "system": system,
        "loaded": number,
        "process": before,
        "grown": grown,
        "scaled": grown * args.tenants / number,
    }
    print(json.dumps(row))


def _ask(
    folder: str, base: Any, every: dict, hash_: str, args: argparse.Namespace
) -> list[Row]:
    import load

    from _measure.loaded import LoadedModels

    rows: list[Row] = []

    def measure(
        url: str, system: str, asked: int, size: int, most: int, **more: Any
    ) -> None:
        some = dict(list(every.items())[:asked])
        warm = asyncio.run(load.ask(url, some, asked, args.seconds, size=size))
        found = asyncio.run(load.ask(url, some, most, size=size, **more))
        if warm["failed"] or found["failed"]:
            print(warm["failures"], found["failures"], file=sys.stderr)
        rows.append({"system": system, **found})
        print(f"{system}, {asked}: {found['rate']:.0f}", file=sys.stderr)

    def measure_all(url: str, system: str, asked: Sequence[int]) -> None:
        limit = {"most": 10**9, "seconds": args.seconds}
        for number in asked:
            measure(url, system, number, 1, **limit)
        measure(url, system, args.tenants, 32, **limit)

    # Room for the guest; the folder stays as it was.
    ours = {"room": args.tenants + 1}
    if "proxy" in args.parts:
        with load.serving(folder, base, False, **ours) as url:
            measure_all(url, OURS, [args.tenants])
    cache = {"kind": LoadedModels, "models": f"{folder}/models", "size": args.cache}
    if "cache" in args.parts:
        with load.serving(folder, base, True, **cache) as url:
            measure_all(url, CACHE.format(args.cache), args.asked)
    if "direct" in args.parts:
        with load.serving(folder, base, True, **ours) as url:
            measure_all(url, DIRECT, args.asked)
            if args.changes:
                measure(url, DIRECT, args.tenants, 1, args.changes, architecture=hash_)
    return rows
