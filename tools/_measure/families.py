"""Trains every context family on permuted images, by `keras_psp.benchmarks.run`.

`--runs FOLDER` keeps each run's folder: runs that have their `result.json` there are
not made again, and an interrupted one goes on where it was. `--with` sets any option of
`keras-psp run permuted`, as in `--with source=digits units=128`. The time of a step, in
the README's table, comes from `measure.py cost network`.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from _measure import results
from _measure import tables
from _measure.results import Row
from keras_psp.benchmarks import Config
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import run as run_config
from keras_psp.benchmarks.run import find_result
from keras_psp.contexts import FAMILIES

FIXED = {
    **{family: {"context": family} for family in FAMILIES},
    "complex-valued": {"context": "complex", "complex_valued": True},
}
NOT_LEARNED = ("identity", "rotation", "permutation", "signed_permutation")
NETWORKS: dict[str, dict[str, Any]] = {
    **FIXED,
    **{
        f"{name}-learned": {**options, "learnable": True}
        for name, options in FIXED.items()
        if name not in NOT_LEARNED
    },
}


_WHAT = "matrix[i][j]: test accuracy of task j in %, after training task i"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    names = {"nargs": "+", "choices": NETWORKS, "metavar": "NETWORK"}
    parser.add_argument("--networks", **names, default=list(NETWORKS))
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--with", nargs="+", default=[], metavar="OPTION=VALUE")
    add_runs(parser)
    results.add_output(parser)


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Adds the option that keeps the runs."""
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="to keep runs in")
    keep = "keep the rows that the result has, and make the runs that it lacks"
    parser.add_argument("--resume", action="store_true", help=keep)


def run(args: argparse.Namespace) -> None:
    """Runs what is missing and prints a table."""
    given = read_options(vars(args)["with"])
    configs = [
        PermutedConfig(**{"source": "mnist", "tasks": args.tasks, **options, **given})
        for options in (NETWORKS[name] for name in args.networks)
    ]
    result = run_all(args, f"families-{args.tasks}-tasks", configs)
    tables.show(tables.draw_families, result)


def read_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads `option=value`, the values numbers, booleans or words."""
    options = {}
    for pair in pairs:
        name, value = pair.split("=", 1)
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def run_all(
    args: argparse.Namespace, name: str, systems: Sequence[Config]
) -> results.Result:
    """Runs systems with all of `--seeds` and saves what their `result.json` say.

    Rows stand in the order of the systems, configs with seed 0. Those of other systems,
    which the result had before, come last.
    """
    configs = [
        dataclasses.replace(system, seed=seed)
        for seed in args.seeds
        for system in systems
    ]
    name = f"{name}-{keras.backend.backend()}"
    found = earlier = results.read_earlier(args, name)
    rows: list[Row] = list(earlier["rows"]) if earlier else []
    known = [tables.read_config(row["config"]) for row in rows]

    def place(row: Row) -> int:
        system = tables.read_system(row["config"])
        return systems.index(system) if system in systems else len(systems)

    with tempfile.TemporaryDirectory() as folder:
        for config in configs:
            if config in known:
                continue
            output = Path(args.runs or folder) / config.folder_name
            if getattr(args, "finished", False):
                result = find_result(config, output)
            else:
                result = run_config(config, output, resume=True)
            if result is None:
                continue
            rows.append(_condense(result))
            rows.sort(key=place)
            accuracy = 100 * result.average_accuracy
            print(f"{output.name}: {accuracy:.1f} %", flush=True)
            args.seeds = sorted({row["config"]["seed"] for row in rows})
            keys = ("backend", "versions", "device")
            environment = {key: getattr(result, key) for key in keys}
            found = results.save(args, name, _WHAT, rows, environment, earlier)
    if not found:
        raise SystemExit(f"No run has ended there. Received: --runs {args.runs}")
    return found


def _condense(result: RunResult) -> Row:
    matrix = [
        [round(100 * accuracy, 2) for accuracy in row if accuracy is not None]
        for row in result.matrix
    ]
    return {
        "config": {"experiment": result.experiment, **result.config},
        "train_seconds": round(sum(result.timings["train_seconds"]), 1),
        "memory": result.memory,
        "contexts": result.contexts,
        "metrics": {
            name: None if value is None else round(100 * value, 2)
            for name, value in result.metrics.items()
        },
        "matrix": matrix,
        "afterwards": _condense_afterwards(result.afterwards),
    }


def _condense_afterwards(found: dict[str, Any]) -> Row:
    """The means over the tasks, in %."""

    def mean(shares: list[float]) -> float:
        return round(100 * sum(shares) / len(shares), 2)

    condensed: Row = {}
    if "in_few_bits" in found:
        few = found["in_few_bits"]
        condensed["in_few_bits"] = {**few, "accuracy": mean(few["accuracy"])}
    if "guessed" in found:
        ways = {name: x for name, x in found["guessed"].items() if name != "images"}
        condensed["guessed"] = {"images": found["guessed"]["images"]} | {
            way: {name: mean(shares) for name, shares in figures.items()}
            for way, figures in ways.items()
        }
    return condensed
