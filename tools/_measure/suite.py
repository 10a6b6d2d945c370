"""Runs a suite of `keras-psp run --suite`, and condenses its results.

`--runs FOLDER` keeps each run's folder: runs that have their `result.json` there are
not made again, and an interrupted one goes on where it was.
"""

import argparse

from _measure import results
from _measure import tables
from _measure.families import add_runs
from _measure.families import run_all
from keras_psp.benchmarks import SUITES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_runs(parser)
    finished = "condense the runs in the folder that have ended, and make none"
    parser.add_argument("--finished", action="store_true", help=finished)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Runs what is missing and prints a table."""
    configs = [config for config in SUITES[args.suite] if config.seed == 0]
    result = run_all(args, f"suite-{args.suite}", configs)
    tables.show(tables.draw_runs, result)
