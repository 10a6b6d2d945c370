"""What the commands of `keras-psp` do; `keras_psp_cli` has their options."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import get_type_hints

import keras
from rich.console import Console
from rich.table import Table

import keras_psp
from keras_psp import benchmarks
from keras_psp import contexts
from keras_psp import datasets
from keras_psp import export
from keras_psp._core.checks import check_name
from keras_psp.benchmarks._checkpoint import count_saved
from keras_psp.benchmarks._progress import RunProgress
from keras_psp.benchmarks._tables import describe_command
from keras_psp.benchmarks._tables import in_percent
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.register import load_parts
from keras_psp.exporting._formats import FORMATS
from keras_psp_cli import main
from keras_psp_cli.parser import BACKENDS

__all__ = ["COMMANDS", "describe_options", "load_parts", "main"]

# The columns of a report's tables for which a terminal has room.
SHOWN = (
    *("runs", "average %", "task 0 %", "retention %", "just trained %"),
    "forgetting %",
)


def describe_options() -> dict[str, Any]:
    """Returns what the options of the command depend on, for `options.json`."""
    return {
        "version": keras_psp.__version__,
        "experiments": {
            name: _describe(config) for name, config in benchmarks.EXPERIMENTS.items()
        },
        "suites": list(benchmarks.SUITES),
        "tuners": list(benchmarks.TUNERS),
        "formats": list(FORMATS),
    }


def _describe(config: type[Config]) -> dict[str, Any]:
    types = get_type_hints(config)
    fields = [
        {
            "name": field.name,
            "type": types[field.name].__name__,
            "default": field.default,
            "help": field.metadata["help"],
            "names": list(field.metadata["names"] or ()),
        }
        for field in dataclasses.fields(config)
    ]
    return {"help": (config.__doc__ or "").splitlines()[0], "options": fields}


def _run(args: argparse.Namespace) -> None:
    if "experiment" not in args:
        _run_suite(args)
        return
    if args.suite is not None:
        raise ValueError(
            "Give an experiment or a suite. Received: "
            f"{args.experiment} and --suite {args.suite}"
        )
    if not args.seeds and (args.workers or args.ray_address):
        raise ValueError(
            "--workers and --ray-address go with --suite or --seeds. Received: neither"
        )
    kind = benchmarks.EXPERIMENTS[args.experiment]
    names = {field.name for field in dataclasses.fields(kind)}
    # Those that were given: they win over a recipe's.
    config = kind(**{name: x for name, x in vars(args).items() if name in names})
    options = {"overwrite": args.overwrite, "tensorboard": args.tensorboard}
    if args.seeds:
        if config.seed:
            raise ValueError(
                f"Give --seed or --seeds. Received: --seed {config.seed} and --seeds"
            )
        _run_all(args, [config], getattr(args, "output", Path("runs")), **options)
        return
    output = getattr(args, "output", Path("runs") / config.folder_name)
    console = _console()
    try:
        result = _run_one(console, config, output, resume=args.resume, **options)
    except KeyboardInterrupt:
        saved = count_saved(output)
        if not saved:
            raise KeyboardInterrupt("nothing is saved yet") from None
        raise KeyboardInterrupt(
            f"{saved} of {config.num_visits} visits to tasks are saved in {output}\n"
            f"continue: {_continue(args.argv)}"
        ) from None
    _print_result(console, config, result, output)
    console.print(f"plots:   keras-psp report {shlex.quote(str(output))}")


def _run_suite(args: argparse.Namespace) -> None:
    if args.suite is None:
        raise ValueError(
            f"Name an experiment, one of {', '.join(benchmarks.EXPERIMENTS)}; or a "
            f"suite with --suite, one of {', '.join(benchmarks.SUITES)}."
        )
    output = getattr(args, "output", Path("runs") / args.suite)
    _run_all(args, benchmarks.SUITES[args.suite], output)


def _run_all(
    args: argparse.Namespace, configs: list[Config], output: Path, **options: Any
) -> None:
    """Runs configs, with each of the seeds, except where there is the result."""
    console = _console()
    if args.seeds:
        once = {dataclasses.replace(config, seed=0): None for config in configs}
        configs = [dataclasses.replace(x, seed=s) for x in once for s in args.seeds]
    accuracies: dict[Config, list[float]] = {}
    number = 0
    try:
        for config, result in _results(args, console, configs, output, options):
            number += 1
            _print_result(console, config, result, output / config.folder_name)
            of_seeds = accuracies.setdefault(dataclasses.replace(config, seed=0), [])
            of_seeds.append(result.average_accuracy)
            if args.seeds and len(of_seeds) == len(args.seeds) > 1:
                console.print(
                    f"{in_percent(of_seeds)} % on average over {len(of_seeds)} seeds"
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{number} of {len(configs)} runs are saved in {output}\n"
            f"continue: {shlex.join(['keras-psp', *args.argv])}"
        ) from None
    console.print(f"report:  keras-psp report {shlex.quote(str(output))}")


def _results(
    args: argparse.Namespace,
    console: Console,
    configs: list[Config],
    output: Path,
    options: dict[str, Any],
) -> Iterator[tuple[Config, benchmarks.RunResult]]:
    """Yields configs and results as runs end, in this process or on Ray."""
    workers, address = args.workers, args.ray_address
    if workers is None and address is None:
        for number, config in enumerate(configs, start=1):
            console.print(f"{number} of {len(configs)}", style="bold")
            folder = output / config.folder_name
            yield config, _run_one(console, config, folder, resume=True, **options)
        return
    if any(options.values()):
        raise ValueError("--overwrite and --tensorboard do not go with --workers.")
    workers = 1 if workers is None else workers
    runs = benchmarks.run_suite(configs, output, workers, address)
    for number, run in enumerate(runs, start=1):
        console.print(f"{number} of {len(configs)}", style="bold")
        yield run


def _run_one(
    console: Console, config: Config, output: Path, **options: Any
) -> benchmarks.RunResult:
    progress = RunProgress(config.num_visits, config.steps, console)
    with progress:
        return benchmarks.run(config, output=output, callbacks=[progress], **options)


def _print_result(
    console: Console, config: Config, result: benchmarks.RunResult, output: Path
) -> None:
    console.print(
        f"{benchmarks.describe_system(result)} on {result.backend}: "
        f"{100 * result.average_accuracy:.1f} % on average over {config.tasks} tasks, "
        f"{100 * result.accuracy_matrix[-1, 0]:.1f} % on task 0, "
        f"{100 * result.forgetting:.1f} % forgotten; "
        f"{result.timings['total_seconds']:.0f} s\n"
        f"written: {output / 'result.json'}"
    )


def _continue(argv: list[str]) -> str:
    words = [word for word in argv if word not in ("--overwrite", "--resume")]
    return shlex.join(["keras-psp", *words, "--resume"])


def _tune(args: argparse.Namespace) -> None:
    from keras_psp import tuning  # It needs KerasTuner.

    kind = benchmarks.EXPERIMENTS[args.experiment]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(args).items() if name in fields}
    config = kind(**given)
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
    try:
        results = tuning.tune(
            config,
            output,
            space,
            tuner=args.tuner,
            trials=args.trials,
            resume=args.resume,
            console=console,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished trials are saved in {output}\ncontinue: {_continue(args.argv)}"
        ) from None
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
        f"again:   {describe_command(best.experiment, best.config, [best.seed])}\n"
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


def _report(args: argparse.Namespace) -> None:
    found = benchmarks.report(args.runs, output=args.output, paper=args.paper)
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


COMMANDS = {
    "run": _run,
    "tune": _tune,
    "report": _report,
    "export": _export,
    "list": _list,
}

if __name__ == "__main__":
    sys.exit(main())
