"""Measures what the READMEs say, and draws their tables and plots from the results.

    python tools/measure.py COMMAND --help
    python tools/measure.py cost layers --backends jax tensorflow torch
    python tools/measure.py tables

Every command writes `NAME.json` into `tools/results/`, or into the folder `--output`:
`config`, `command`, `seed`, versions, backend, device, date and `rows`. `tables` writes
the READMEs' tables from these files, `plots` the pictures in `examples/`. A command
measures on the backend of `KERAS_BACKEND`, or on each of `--backends` in a process of
its own. The options `--output`, `--name` and `--backends` are for all commands.
"""

import argparse
import importlib
import os
import subprocess
import sys

from _measure.tables import BACKENDS

COMMANDS = {
    "cost": "time of superposed layers and networks, beside plain ones",
    "devices": "what several devices train, beside what one does",
    "floor": "time of model.fit, beside a bare jax.lax.scan",
    "growth": "memory and time over the numbers of tasks and devices, and over width",
    "gpu": "images and tokens a second on a GPU, beside plain Keras",
    "merge": "accuracy of K fine-tuned networks kept in one, and of rival methods",
    "frontier": "accuracy over memory of K fine-tuned networks, and of rival methods",
    "text": "accuracy over memory of ten fine-tuned MiniLMs, and of rival methods",
    "images": "the same of eight fine-tuned EfficientNet-Lite0",
    "adapters": "four adapters of a GPT-2: loss, one mixed batch, bytes, speed",
    "export": "how near exported models come to the model, by format",
    "serving": "memory and speed of one SavedModel for 20 tasks, beside 20 models",
    "families": "accuracy of every context family on permuted images",
    "suite": "accuracy of the systems of a suite of `keras-psp run`",
    "infer": "how often `infer_task` finds the task",
    "exact": "how exactly convert() and extract() keep what a model computes",
    "stack": "time of training 1000 models together, and ensembles for tables",
    "hub": "how much of KerasHub's models convert() makes tasks' own, and how exactly",
    "tenants": "memory and requests a second of 1000 tenants in one model",
    "machines": "a small autoencoder for each of 1000 machines, and all in a tenth",
    "tables": "write the READMEs' tables from the results",
    "plots": "draw the plots of the READMEs from the results",
}


def main() -> None:
    """Runs one command, on one backend or on several."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--backends", nargs="+", choices=BACKENDS, default=())
    given, rest = before.parse_known_args()
    for backend in given.backends:
        environment = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, __file__, *rest]
        subprocess.run(command, env=environment, check=True)
    if given.backends:
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        command = commands.add_parser(
            name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if rest[:1] == [name]:  # The others need not be imported.
            module = importlib.import_module(f"_measure.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(rest)
    args.run(args)


if __name__ == "__main__":
    main()
