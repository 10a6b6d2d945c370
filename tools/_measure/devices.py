"""Compares what several devices train with what one does, to the last digits.

A perceptron with parts of all kinds, a ResNet18 with statistics for each task and a
converted encoder are trained on two tasks, with `EWC` and with `Gram`, on one device
and with each engine of the backend: on eight virtual devices (JAX), in two replicas and
in two processes (TensorFlow), in two processes (torch). A row has the largest
differences of the losses, of the model's weights and of the optimizer's state, and says
whether unknown tasks made their own examples' outputs NaN, and no other. Where an array
has numbers greater than 1, its difference is relative to the greatest. ResNet18 is of
float64; what `EWC` and `Gram` measure is float32.

JAX' programs are compiled without most optimizations, as in the tests. The models and
the training are those of `tests/distribution/cases.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

from _measure import results
from _measure import tables

PROGRAMS = {
    "jax": ("on_jax.py",),
    "tensorflow": ("on_tensorflow.py", "on_workers.py"),
    "torch": ("on_torch.py",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    help = "such as mlp-ewc; all, if none is given"
    parser.add_argument("cases", nargs="*", metavar="CASE", help=help)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Trains with each engine, and prints what differs."""
    folder = results.ROOT / "tests" / "distribution"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags}
    environment.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    backend = keras.backend.backend()
    with tempfile.TemporaryDirectory() as written:
        file = Path(written) / "rows"
        for program in PROGRAMS[backend]:
            command = [sys.executable, folder / program, file, *args.cases]
            subprocess.run(command, env=environment, check=True)
        rows = [json.loads(row) for row in file.read_text().splitlines()]
    what = "largest differences between models trained on several devices and on one"
    result = results.save(args, f"devices-{backend}", what, rows)
    tables.show(tables.draw_devices, result)
