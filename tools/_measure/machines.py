"""Runs examples/machines/train.py: a small autoencoder for each of many machines.

    python tools/measure.py machines --machines 1000 --epochs 40

It trains all together, a few of them in a loop, and keeps all in a tenth of their
memory. A row is a figure of all machines.
"""

import argparse
import os
import runpy
import tempfile

from _measure import results
from _measure import tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--machines", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=40, help="at most")
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Measures, and prints the table."""
    import keras
    import numpy as np

    os.environ.update(MACHINES=str(args.machines), EPOCHS=str(args.epochs))
    path = str(results.ROOT / "examples" / "machines" / "train.py")
    with tempfile.TemporaryDirectory() as folder:  # Which keeps the model.
        os.environ["FOLDER"] = folder
        found = runpy.run_path(path, run_name="__main__")
    own, compressed = found["own"], found["compressed"]
    lost = 100 * (own - compressed)
    rows = [
        {"what": f"area under the curve, {name}", **_describe(np.array(area))}
        for name, area in (
            ("one network for all", found["shared"]),
            ("each its own", own),
            ("all in a part of the memory", compressed),
        )
    ]
    rows.append({"what": "points lost of its own", **_describe(lost)})
    more = {
        "memory": found["memory"].total / found["memory"].separate,
        "within_half_a_point": int((lost <= 0.5).sum()),
        "seconds_together": found["together"],
        "seconds_loop": found["loop"],
        "loop_of": found["sample"],
    }
    environment = results.describe_environment("scikit-learn")
    what = "areas under the curve of the machines, and seconds"
    name = f"machines-{keras.backend.backend()}"
    result = results.save(args, name, what, rows, environment, **more)
    tables.show(tables.draw_machines, result)


def _describe(values) -> results.Row:
    figures = {"mean": values.mean(), "least": values.min(), "most": values.max()}
    return {name: float(value) for name, value in figures.items()}
