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


def read_earlier(args: argparse.Namespace, name: str) -> Result | None:
    """Returns the result that `--resume` adds to, or `None` if there is none.

    Raises:
        SystemExit: It was measured with other versions: a result has one environment.
    """
    path = args.output / f"{args.name or name}.json"
    if not (args.resume and path.exists()):
        return None
    found = json.loads(path.read_text())
    for package, version in found["environment"]["versions"].items():
        here = _version(package)
        if here != version:
            raise SystemExit(
                f"`--resume` needs the versions of {path}: {package} {version} there, "
                f"{here} here"
            )
    return found


def describe_environment(*packages: str) -> dict[str, Any]:
    """Returns backend, versions and device of this process."""
    import keras

    backend = keras.backend.backend()
    names = ("keras-psp", "keras", "numpy", backend, *packages)
    return {
        "backend": backend,
        "versions": {name: _version(name) for name in ("python", *names)},
        "device": {
            "platform": platform.platform(),
            "name": str(keras.Variable(0.0).value.device),
            "cpus": len(os.sched_getaffinity(0)),
        },
    }


def _version(package: str) -> str:
    if package == "python":
        return platform.python_version()
    return importlib.metadata.version(package)


def save(
    args: argparse.Namespace,
    name: str,
    what: str,
    rows: Sequence[Row],
    environment: dict[str, Any] | None = None,
    earlier: Result | None = None,
    **more: Any,
) -> Result:
    """Writes a result as JSON and returns it.

    Args:
        args: The command's options, which become the `config`.
        name: Of the JSON, if `--name` gives no other.
        what: What the figures in the rows are.
        rows: A dictionary for each row.
        environment: What was measured with. Defaults to this process.
        earlier: The result whose rows are among these.
        **more: Further entries of the `config`.
    """
    hidden = ("name", "run", "seed", "seeds", *FOLDERS)
    config = {key: value for key, value in vars(args).items() if key not in hidden}
    command = _command()
    if earlier:
        commands = [*earlier["command"].split("; then "), command]
        command = "; then ".join(dict.fromkeys(commands))  # Each once.
    result = {
        "what": what,
        "provenance": "measured",
        "command": command,
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
