"""The options of each command, without importing what the commands need."""

import argparse
import json
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_psp_cli.names import check_name

BACKENDS = ("jax", "tensorflow", "torch")
ENTRY_POINTS = "keras_psp.benchmarks"  # Modules of packages that register parts.
OPTIONS = Path(__file__).with_name("options.json")

DESCRIPTION = """\
Parameter superposition: many models in one set of weights.

  keras-psp run permuted --context binary
      learns ten tasks one after the other and measures the accuracy on each
  keras-psp run permuted --context identity
      does the same with a standard network, which forgets earlier tasks
  keras-psp report runs
      compares these runs: prints tables, writes plots and a page for the browser
  keras-psp run --suite paper-small
      runs all of the paper's experiments on small data, in minutes
  keras-psp tune permuted --trials 12
      searches for the network that remembers most; `report` takes its folder too
  keras-psp export model.keras model
      writes a SavedModel, or --format onnx and others, for runtimes without Keras
  keras-psp list
      lists the experiments, sources and families of contexts

Completion in bash and zsh: eval "$(register-python-argcomplete keras-psp)"
"""


def read_options() -> dict[str, Any]:
    """Returns what `options.json` says: version, experiments and their options."""
    return json.loads(OPTIONS.read_text(encoding="utf-8"))


def build_parser(options: dict[str, Any]) -> argparse.ArgumentParser:
    """Returns the parser.

    Args:
        options: What `read_options()` returns.
    """
    parser = _Parser(
        prog="keras-psp",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=options["version"])
    parser.set_defaults(backend=None, parts=[], seeds=None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add_arguments, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(command=name)
        add_arguments(command, options)
    return parser


class _Parser(argparse.ArgumentParser):
    """Takes whole words alone, and names the nearest to an unknown one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("--"):
                name = word.split("=")[0]
                check_name(
                    "option", name, {*re.findall(r"--[\w-]+", self.format_help())}
                )
        return found, unknown


def _add_run(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    suites = options["suites"]
    parser.add_argument(
        "--suite",
        type=_known("suite", suites),
        metavar="NAME",
        help="run all experiments of a suite, one after the other, but those that have "
        "their result. The suites: " + ", ".join(suites),
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="INT",
        help="how many experiments of the suite run at a time, on Ray",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="run the suite on this Ray cluster (default: on this machine)",
    )
    _add_run_options(parser, "folder for the runs (default: runs/NAME)")
    _add_seeds(parser)
    experiments = parser.add_subparsers(metavar="EXPERIMENT")
    for name, spec in options["experiments"].items():
        experiment = _add_experiment(experiments, name, spec)
        for option in spec["options"]:
            _add_option(experiment, option)
        _add_run_options(
            experiment,
            "folder for result.json (default: a folder in runs/ named after the run)",
        )
        _add_seeds(experiment)
        experiment.add_argument(
            "--overwrite",
            action="store_true",
            help="write to the folder even if it holds files",
        )
        experiment.add_argument(
            "--resume",
            action="store_true",
            help="continue the run in the folder after its last finished task",
        )
        experiment.add_argument(
            "--tensorboard",
            action="store_true",
            help="write logs for TensorBoard into the folder",
        )


def _add_experiment(experiments: Any, name: str, spec: dict[str, Any]) -> Any:
    parser = experiments.add_parser(
        name,
        help=spec["help"],
        description=spec["help"],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(experiment=name)
    return parser


def _add_run_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument(
        "--backend",
        type=_known("backend", BACKENDS),
        default=argparse.SUPPRESS,
        metavar="{" + ",".join(BACKENDS) + "}",
        help="Keras' backend; the environment variable KERAS_BACKEND sets it too",
    )
    parser.add_argument("--output", type=Path, default=argparse.SUPPRESS, help=output)
    _add_parts(parser)


def _add_seeds(parser: Any) -> None:
    parser.add_argument(
        "--seeds",
        type=_read_seeds,
        default=argparse.SUPPRESS,
        metavar="INT,INT,...",
        help="run once with each of these seeds; one number N means the seeds 0 to "
        "N - 1. A run that has its result is left out",
    )


def _read_seeds(text: str) -> list[int]:
    words = text.split(",")
    seeds = [int(word) for word in words if word.isdecimal()]
    if len({*seeds}) < len(words):
        raise argparse.ArgumentTypeError(
            f"seeds must be a number, or different numbers as in 0,1,2: {text!r}"
        )
    if seeds == [0]:
        raise argparse.ArgumentTypeError(f"there must be a seed: {text!r}")
    return seeds if len(seeds) > 1 else [*range(seeds[0])]


def _add_parts(parser: Any) -> None:
    parser.add_argument(
        "--parts",
        action="append",
        default=argparse.SUPPRESS,
        metavar="FILE.py",
        help="a Python file that registers parts of your own; may be repeated",
    )


def _add_option(parser: Any, option: dict[str, Any]) -> None:
    flag = "--" + option["name"].replace("_", "-")
    help, names = option["help"], option["names"]
    default = argparse.SUPPRESS  # A config is told what was given alone.
    if option["type"] == "bool":
        parser.add_argument(flag, action="store_true", default=default, help=help)
        return
    kind: Any = {"int": int, "float": float, "str": str}[option["type"]]
    metavar = "NAME" if names else kind.__name__.upper()
    if names:
        help = f"{help}: {', '.join(names)}"
    help = f"{help} (default: {option['default']})"
    action = parser.add_argument(
        flag, default=default, help=help, type=kind, metavar=metavar
    )
    if names:  # The config checks them, which knows your own names, too.
        action.completer = lambda **_: names


def _known(what: str, names: Iterable[str]) -> Callable[[str], str]:
    def check(name):
        try:
            return check_name(what, name, names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return check


def _index_or_name(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _add_tune(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    tuners = options["tuners"]
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    for name, spec in options["experiments"].items():
        experiment = _add_experiment(experiments, name, spec)
        experiment.add_argument(
            "--tuner",
            type=_known("tuner", tuners),
            default="random",
            metavar="{" + ",".join(tuners) + "}",
            help="how KerasTuner chooses the next trial",
        )
        experiment.add_argument(
            "--trials", type=int, default=20, metavar="INT", help="number of runs"
        )
        experiment.add_argument(
            "--search",
            action="append",
            default=argparse.SUPPRESS,
            metavar="NAME=CHOICE,CHOICE,...",
            help="an option to search and its choices; may be repeated, as in --search "
            "units=64,128 --search context=binary,powers (default: contexts, sizes and "
            "training options, except options you set yourself)",
        )
        _add_run_options(
            experiment,
            "folder for the search (default: a folder in runs/ named after it)",
        )
        experiment.add_argument(
            "--resume",
            action="store_true",
            help="continue the search in the folder",
        )
        fixed = experiment.add_argument_group("options that are not searched")
        for option in spec["options"]:
            _add_option(fixed, option)


def _add_report(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, folder of many runs, or result.json",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the report (default: the innermost one that holds all runs)",
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="also write plots as PDF and SVG, and tables in LaTeX",
    )


def _add_export(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    formats = options["formats"]
    parser.add_argument("model", type=Path, help="a .keras file")
    parser.add_argument("path", type=Path, help="where to write")
    parser.add_argument(
        "--format",
        type=_known("format", formats),
        default="tf_saved_model",
        metavar="{" + ",".join(formats) + "}",
        help="default: tf_saved_model",
    )
    parser.add_argument(
        "--task",
        type=_index_or_name,
        action="append",
        default=[],
        metavar="TASK",
        help="add an endpoint for this task to a SavedModel; may be repeated",
    )
    parser.add_argument(
        "--infer-task",
        action=argparse.BooleanOptionalAction,
        help="add an endpoint that guesses the task to a SavedModel "
        "(default: if the model allows it)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="for --infer-task: the model's outputs are probabilities, not logits",
    )
    parser.add_argument(
        "--unpack",
        action="store_true",
        help="write numbers in few bits as floats: larger, and faster",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what is at the path"
    )


def _add_list(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    _add_parts(parser)


COMMANDS = {
    "run": (_add_run, "run an experiment"),
    "tune": (_add_tune, "search for the network that remembers most"),
    "report": (_add_report, "compare runs: tables, plots and a page for the browser"),
    "export": (_add_export, "write a model for runtimes without Keras"),
    "list": (_add_list, "list the experiments, sources and families of contexts"),
}
