"""The one form of all results: how something was measured, with what, and the rows."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Result = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tools" / "results"
SEED = 0
# Options that say where files lie, which is of no interest elsewhere.
FOLDERS = ("output", "folder", "runs", "weights", "texts")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the result goes."""
    output = {"type": Path, "default": RESULTS, "metavar": "FOLDER"}
    parser.add_argument("--output", **output, help="for NAME.json (tools/results)")
    parser.add_argument("--name", help="of the JSON, in place of the command's own")


def describe_environment(*packages: str) -> dict[str, Any]:
    """Returns backend, versions and device of this process."""
    import keras

    backend = keras.backend.backend()
    names = ("keras-psp", "keras", "numpy", backend, *packages)
    return {
        "backend": backend,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in names},
        },
        "device": {
            "platform": platform.platform(),
            "name": str(keras.Variable(0.0).value.device),
            "cpus": len(os.sched_getaffinity(0)),
        },
    }


def save(
    args: argparse.Namespace,
    name: str,
    what: str,
    rows: Sequence[Row],
    environment: dict[str, Any] | None = None,
    **more: Any,
) -> Result:
    """Writes a result as JSON and returns it.

    Args:
        args: The command's options, which become the `config`.
        name: Of the JSON, if `--name` gives no other.
        what: What the figures in the rows are.
        rows: A dictionary for each row.
        environment: What was measured with. Defaults to this process.
        **more: Further entries of the `config`.
    """
    hidden = ("name", "run", "seed", "seeds", *FOLDERS)
    config = {key: value for key, value in vars(args).items() if key not in hidden}
    result = {
        "what": what,
        "provenance": "measured",
        "command": _command(),
        "date": datetime.date.today().isoformat(),
        "seed": getattr(args, "seeds", getattr(args, "seed", SEED)),
        "config": {**config, **more},
        "environment": environment or describe_environment(),
        "rows": list(rows),
    }
    write(args.output / f"{args.name or name}.json", result)
    return result


def write(path: Path, result: Result) -> None:
    """Writes a result, each row on a line of its own."""
    head = {key: value for key, value in result.items() if key != "rows"}
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = [json.dumps(row, ensure_ascii=False) for row in result["rows"]]
    text += ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _command() -> str:
    words, shown = iter(sys.argv[1:]), []
    for word in words:
        if word.removeprefix("--") in FOLDERS:
            next(words)
        else:
            shown.append(word)
    return "python tools/measure.py " + shlex.join(shown)
