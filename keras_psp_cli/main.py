"""Reads the command line, chooses the backend, and calls a command."""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from keras_psp_cli.names import check_name
from keras_psp_cli.parser import BACKENDS
from keras_psp_cli.parser import COMMANDS
from keras_psp_cli.parser import ENTRY_POINTS
from keras_psp_cli.parser import build_parser
from keras_psp_cli.parser import read_options

# Information and warnings of TensorFlow's, and what is said of them.
_LOG_LINE = re.compile(
    r"^(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} ).*\n", re.M
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: List of strings. Defaults to the process's arguments.

    Returns:
        The exit status: 0; 2 for bad input, with a message on stderr; 130 after an
        interruption.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Errors that stop it are told.
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(build_parser(read_options()))  # Ends the process.
    if not argv:
        build_parser(read_options()).print_help()
        return 0
    try:
        options = _find_options(argv)
        _check_words(argv, options)
        args = build_parser(options).parse_args(argv)
        _choose_backend(args.backend, argv)
        cli = _import_cli(args.command)
        args.argv = argv
        cli.COMMANDS[args.command](args)
    except ModuleNotFoundError as error:
        print(f"keras-psp: error: {_say_how_to_install(error)}", file=sys.stderr)
        return 2
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"keras-psp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(": ".join(["keras-psp: interrupted", *interrupt.args]), file=sys.stderr)
        return 130
    return 0


def _find_options(argv: list[str]) -> dict[str, Any]:
    """Returns the options that are built in; with your own parts, those of all."""
    if argv[0] not in ("run", "tune", "list"):
        return read_options()
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--parts", action="append", default=[])
    early.add_argument("--backend")
    found, _ = early.parse_known_args(argv)
    if (
        "keras_psp.benchmarks" not in sys.modules
        and not found.parts
        and not importlib.metadata.entry_points(group=ENTRY_POINTS)
    ):
        return read_options()
    if found.backend in BACKENDS:  # What is none is told later.
        _choose_backend(found.backend, argv)
    cli = _import_cli(argv[0])
    cli.load_parts(found.parts)
    return cli.describe_options()


def _import_cli(command: str) -> Any:
    """Imports what a command needs, and returns `keras_psp.cli`."""
    names = ["keras_psp.cli"]
    if command in ("run", "tune") and importlib.util.find_spec("tensorflow"):
        names.append("tensorflow")  # It reads the data on every backend.
    if not all(name in sys.modules for name in names):
        import_quietly(names)
    return importlib.import_module(names[0])


def import_quietly(names: list[str]) -> None:
    """Imports modules, without TensorFlow's words about the machine.

    Its C++ code writes them to the process's stderr before it reads
    `TF_CPP_MIN_LOG_LEVEL`. What else is written there, is written afterwards.
    """
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            for name in names:
                importlib.import_module(name)
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            said = caught.read().decode(errors="replace")
            print(_LOG_LINE.sub("", said), end="", file=sys.stderr)


def _check_words(argv: list[str], options: dict[str, Any]) -> None:
    # argparse's own message does not say which known word is the nearest.
    words = [word for word in argv[:2] if not word.startswith("-")]
    if words:
        check_name("command", words[0], COMMANDS)
    if len(words) == 2 and words[0] in ("run", "tune"):
        check_name("experiment", words[1], options["experiments"])


def _choose_backend(backend: str | None, argv: list[str]) -> None:
    """Sets Keras' backend; starts the command again if Keras has another already."""
    if backend is None:
        return
    if importlib.util.find_spec(backend) is None:
        raise ModuleNotFoundError(
            f"The backend is not installed. Install it with: pip install {backend}"
        )
    os.environ["KERAS_BACKEND"] = backend
    if "keras" in sys.modules:
        import keras

        if keras.backend.backend() != backend:
            sys.stdout.flush()
            command = [sys.executable, "-m", "keras_psp_cli", *argv]
            os.execv(sys.executable, command)


def _say_how_to_install(error: ModuleNotFoundError) -> str:
    if error.name in BACKENDS:
        return (
            f"Keras' backend is {error.name}, which is not installed. Install it "
            f"with: pip install {error.name}; or name one that is, as in "
            "--backend jax"
        )
    if error.name is None:  # The library's own, which says it.
        return str(error)
    return f'{error}. Install it with: pip install "keras-psp[bench]"'
