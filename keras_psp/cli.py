"""The command `keras-psp`."""

import argparse
import dataclasses
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

import keras_psp
from keras_psp import benchmarks
from keras_psp import contexts
from keras_psp import datasets
from keras_psp import export
from keras_psp._core.checks import check_name
from keras_psp.benchmarks._progress import RunProgress
from keras_psp.benchmarks.config import Config
from keras_psp.exporting._formats import FORMATS

BACKENDS = ("jax", "tensorflow", "torch")

# The columns of a report's tables for which a terminal has room.
SHOWN = (
    *("runs", "average %", "task 0 %", "retention %", "just trained %"),
    "forgetting %",
)

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
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: List of strings. Defaults to the process's arguments.

    Returns:
        The exit status: 0; 2 for bad input, with a message on stderr; 130 after an
        interruption.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        _check_words(argv)
        if not argv:
            _parser().print_help()
            return 0
        args = _parser().parse_args(argv)
        if getattr(args, "backend", None) not in (None, keras.backend.backend()):
            _restart(args.backend, argv)
        args.command(args)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"keras-psp: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keras-psp: interrupted", file=sys.stderr)
        return 130
    return 0


def _check_words(argv: list[str]) -> None:
    # argparse's own message does not say which known word is the nearest.
    words = [word for word in argv[:2] if not word.startswith("-")]
    if words:
        check_name("command", words[0], _COMMANDS)
    if len(words) == 2 and words[0] in ("run", "tune"):
        check_name("experiment", words[1], benchmarks.EXPERIMENTS)


def _restart(backend: str, argv: list[str]) -> None:
    """Starts the command again, because Keras chose its backend on import."""
    if importlib.util.find_spec(backend) is None:
        raise ModuleNotFoundError(
            f"The backend is not installed. Install it with: pip install {backend}"
        )
    os.environ["KERAS_BACKEND"] = backend
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "keras_psp.cli", *argv])


class _Parser(argparse.ArgumentParser):
    """Takes whole words alone, and names the nearest to an unknown one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("--"):
                name = word.split("=")[0]
                check_name("option", name, re.findall(r"--[\w-]+", self.format_help()))
        return found, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="keras-psp",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=keras_psp.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (add_arguments, help) in _COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help)
        add_arguments(command)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        type=_known("suite", benchmarks.SUITES),
        metavar="NAME",
        help="run the experiments of a suite one after the other, except those that "
        "have their result: " + ", ".join(benchmarks.SUITES),
    )
    _add_run_options(parser, "folder for the runs (default: runs/NAME)")
    parser.set_defaults(command=_run_suite)
    experiments = parser.add_subparsers(metavar="EXPERIMENT")
    for name, config in benchmarks.EXPERIMENTS.items():
        experiment = _add_experiment(experiments, name, config)
        for field in dataclasses.fields(config):
            _add_option(experiment, field, default=field.default)
        _add_run_options(
            experiment,
            "folder for result.json (default: a folder in runs/ named after the run)",
        )
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
        experiment.set_defaults(command=_run, config=config)


def _add_experiment(
    experiments: Any, name: str, config: type[Config]
) -> argparse.ArgumentParser:
    help = (config.__doc__ or "").splitlines()[0]
    return experiments.add_parser(
        name,
        help=help,
        description=help,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def _add_run_options(parser: argparse.ArgumentParser, output: str) -> None:
    parser.add_argument(
        "--backend",
        type=_known("backend", BACKENDS),
        default=keras.backend.backend(),
        metavar="{" + ",".join(BACKENDS) + "}",
        help="Keras' backend; the environment variable KERAS_BACKEND sets it too",
    )
    parser.add_argument("--output", type=Path, default=argparse.SUPPRESS, help=output)


def _add_option(parser: Any, field: dataclasses.Field, default: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    help, names = field.metadata["help"], field.metadata["names"]
    if field.type is bool:
        parser.add_argument(flag, action="store_true", default=default, help=help)
        return
    kind: Any = field.type
    options = {"type": kind, "metavar": kind.__name__.upper()}
    if names:
        options = {"type": _known(field.name, names), "metavar": "NAME"}
        help = f"{help}: {', '.join(names)}"
    parser.add_argument(flag, default=default, help=help, **options)


def _known(what: str, names: Iterable[str]) -> Callable[[str], str]:
    def check(name):
        try:
            return check_name(what, name, names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return check


def _run(args: argparse.Namespace) -> None:
    fields = [field.name for field in dataclasses.fields(args.config)]
    config = args.config(**{name: getattr(args, name) for name in fields})
    output = getattr(args, "output", Path("runs") / config.folder_name)
    options = {"overwrite": args.overwrite, "tensorboard": args.tensorboard}
    console = _console()
    _run_one(console, config, output, resume=args.resume, **options)
    console.print(f"plots:   keras-psp report {shlex.quote(str(output))}")


def _run_suite(args: argparse.Namespace) -> None:
    if args.suite is None:
        raise ValueError(
            f"Name an experiment, one of {', '.join(benchmarks.EXPERIMENTS)}; or a "
            f"suite with --suite, one of {', '.join(benchmarks.SUITES)}."
        )
    console = _console()
    suite = benchmarks.SUITES[args.suite]
    output = getattr(args, "output", Path("runs") / args.suite)
    for number, config in enumerate(suite, start=1):
        console.print(f"{number} of {len(suite)}", style="bold")
        _run_one(console, config, output / config.folder_name, resume=True)
    console.print(f"report:  keras-psp report {shlex.quote(str(output))}")


def _run_one(console: Console, config: Config, output: Path, **options: Any) -> None:
    result = benchmarks.run(
        config,
        output=output,
        callbacks=[RunProgress(config.num_visits, config.steps, console)],
        **options,
    )
    console.print(
        f"{benchmarks.describe_system(result)} on {result.backend}: "
        f"{100 * result.average_accuracy:.1f} % on average over {config.tasks} tasks, "
        f"{100 * result.accuracy_matrix[-1, 0]:.1f} % on task 0, "
        f"{100 * result.forgetting:.1f} % forgotten; "
        f"{result.timings['total_seconds']:.0f} s\n"
        f"written: {output / 'result.json'}"
    )


def _add_tune(parser: argparse.ArgumentParser) -> None:
    experiments = parser.add_subparsers(metavar="EXPERIMENT", required=True)
    for name, config in benchmarks.EXPERIMENTS.items():
        experiment = _add_experiment(experiments, name, config)
        experiment.add_argument(
            "--tuner",
            type=_known("tuner", benchmarks.TUNERS),
            default="random",
            metavar="{" + ",".join(benchmarks.TUNERS) + "}",
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
        for field in dataclasses.fields(config):
            _add_option(fixed, field, default=argparse.SUPPRESS)
        experiment.set_defaults(command=_tune, config=config)


def _tune(args: argparse.Namespace) -> None:
    from keras_psp import tuning  # It needs KerasTuner.

    fields = {field.name: field for field in dataclasses.fields(args.config)}
    given = {name: value for name, value in vars(args).items() if name in fields}
    config = args.config(**given)
    if "search" in args:
        space = _space(args.search, fields, given)
    else:
        space = {
            name: list(choices)
            for name, choices in tuning.default_space(config).items()
            if name not in given
        }
    folder = f"tune-{args.tuner}-{config.folder_name}"
    output = getattr(args, "output", Path("runs") / folder)
    console = _console()
    results = tuning.tune(
        config,
        output,
        space,
        tuner=args.tuner,
        trials=args.trials,
        resume=args.resume,
        console=console,
    )
    if not results:
        raise ValueError(
            f"No trial has been finished. Received: output={str(output)!r}"
        )
    best = results[0]
    chosen = benchmarks.Search.load(output).describe_trial(best.config)
    console.print(
        f"best of {len(results)}: {chosen}: "
        f"{100 * best.average_accuracy:.1f} % on average over {best.config['tasks']} "
        f"tasks, {100 * best.accuracy_matrix[-1, 0]:.1f} % on task 0, which is "
        f"{100 * benchmarks.retention(best.accuracy_matrix):.1f} % of what it was\n"
        f"again:   keras-psp run {_command(args.config(**best.config))}\n"
        f"report:  keras-psp report {shlex.quote(str(output))}"
    )


def _space(
    searched: list[str], fields: dict[str, dataclasses.Field], given: dict[str, Any]
) -> dict[str, list]:
    """Returns the choices of `--search`, converted to the fields' types."""
    space = {}
    for text in searched:
        name, _, choices = text.partition("=")
        name = name.replace("-", "_")
        check_name("hyperparameter", name, fields)
        if name in space or name in given:
            raise ValueError(
                f"`{name}` may be set once, or searched once. Received: --search {text}"
            )
        space[name] = [_read(name, x, fields[name].type) for x in choices.split(",")]
    return space


def _read(name: str, text: str, type: Any) -> Any:
    if type is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return {bool: int}.get(type, type)(text)
    except ValueError as error:
        raise ValueError(
            f"The choices of `{name}` must be {type.__name__}. Received: {text!r}"
        ) from error


def _command(config: Config) -> str:
    """Returns the arguments of `keras-psp run` that give a config."""
    words = [config.experiment]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words.append("--" + field.name.replace("_", "-"))
            words += [] if value is True else [str(value)]
    return " ".join(words)


def _add_report(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(command=_report)


def _report(args: argparse.Namespace) -> None:
    found = benchmarks.report(args.runs, output=args.output)
    console = _console()
    for title, rows in found.tables.items():
        table = Table(title=title, title_justify="left")
        # These fit into 80 columns; the files have the others.
        what, *others = rows[0]
        table.add_column(what, overflow="fold", min_width=12)
        numbers = [column for column in others if column in SHOWN]
        for column in numbers:
            table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
        for row in rows:
            table.add_row(
                *(row[column].replace("**", "") for column in (what, *numbers))
            )
        console.print(table)
    for reason in found.left_out:
        console.print(f"left out: {reason}")
    for path in found.paths:
        console.print(f"written: {path}")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a .keras file")
    parser.add_argument("path", type=Path, help="where to write")
    parser.add_argument(
        "--format",
        type=_known("format", FORMATS),
        default="tf_saved_model",
        metavar="{" + ",".join(FORMATS) + "}",
        help="default: tf_saved_model",
    )
    parser.add_argument(
        "--task",
        type=int,
        action="append",
        default=[],
        metavar="INT",
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
    parser.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> None:
    if not args.model.is_file():
        raise FileNotFoundError(f"There is no such file. Received: {str(args.model)!r}")
    model = keras.saving.load_model(args.model, compile=False)
    card = export(
        model,
        args.path,
        args.format,
        tasks=args.task,
        infer_task=args.infer_task,
        from_logits=not args.probabilities,
        unpack=args.unpack,
        overwrite=args.overwrite,
    )
    _console().print(
        f"written: {args.path}; its outputs differ from the model's by at most "
        f"{card['difference']:.1g}\nendpoints: {', '.join(card['endpoints'])}"
    )


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_list)


def _list(args: argparse.Namespace) -> None:
    console = _console()
    for what, names in (
        ("experiments", benchmarks.EXPERIMENTS),
        ("suites", benchmarks.SUITES),
        ("tuners", benchmarks.TUNERS),
        ("sources", datasets.SOURCES),
        ("contexts", contexts.FAMILIES),
        ("formats", FORMATS),
        ("backends", BACKENDS),
    ):
        console.print(f"{what + ':':<13}{', '.join(names)}")


def _console() -> Console:
    # Without markup: brackets in a path are a part of its name.
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    return console


_COMMANDS = {
    "run": (_add_run, "run an experiment"),
    "tune": (_add_tune, "search for the network that remembers most"),
    "report": (_add_report, "compare runs: tables, plots and a page for the browser"),
    "export": (_add_export, "write a model for runtimes without Keras"),
    "list": (_add_list, "list the experiments, sources and families of contexts"),
}

if __name__ == "__main__":
    sys.exit(main())
