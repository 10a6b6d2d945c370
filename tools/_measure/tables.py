"""Writes the tables of READMEs and docstrings from `tools/results/`.

In a README a table stands between `<!-- table: NAME -->` and `<!-- /table -->`; in a
docstring it is found by its first line. With `--check` nothing is written, and the
command fails if a page and its results disagree.
"""

import argparse
import dataclasses
import functools
import json
import operator
import os
import re
import statistics
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _measure.results import ROOT
from _measure.results import Result
from _measure.results import Row
from keras_psp.benchmarks import EXPERIMENTS
from keras_psp.benchmarks import Config
from keras_psp.benchmarks.protocols import PROTOCOLS
from keras_psp.benchmarks.protocols import RECIPES

# The titles of a table's columns, and its rows.
Cells = tuple[Sequence[str], Iterable[Sequence[str]]]
# A number, one for each seed, or what is known of them: mean, deviation, n.
Figure = float | list[float] | dict[str, float]

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
# The options of a run that a table names, and their defaults.
OPTIONS = {
    "context": "binary",
    "learnable": False,
    "complex_valued": False,
    "head": "superposed",
    "consolidation": "none",
    "strength": 0.0,
    "schedule": "constant",
    "learning_rate": 1e-4,
    "separate": False,
}
CONSOLIDATIONS = {
    **{"ewc": "`EWC`", "si": "`SynapticIntelligence`", "gram": "`Gram`"},
    "freeze": "`Freeze`",
}
NETWORKS = {"mlp": "MLP", "resnet18": "ResNet18"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--check", action="store_true", help="write nothing")
    root = {"type": Path, "default": ROOT, "help": argparse.SUPPRESS}
    parser.add_argument("--root", **root)


def run(args: argparse.Namespace) -> None:
    """Writes all tables anew; or says which are not as their results."""
    stale = []
    for name, table in TABLES.items():
        path = args.root / table.page
        text = path.read_text()
        new = _replace(text, name, table, args.root)
        if new != text:
            stale.append(f"{table.page}: {name}")
            if not args.check:
                path.write_text(new)
    print("\n".join(stale) or "All tables are as their results.")
    if args.check and stale:
        sys.exit("Tables and results disagree. Run: python tools/measure.py tables")


def load(name: str, root: Path = ROOT) -> Result:
    """Reads a result by its name."""
    return json.loads((root / "tools" / "results" / f"{name}.json").read_text())


def show(draw: Callable[..., Cells], *results: Result) -> None:
    """Prints a table of results."""
    print(write_table(*draw(*results)))


def write_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], pad: bool = False
) -> str:
    """Returns a Markdown table, its columns padded if it is to be read as it is."""
    rows = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (c.ljust(w) if pad else c for c, w in zip(row, widths, strict=True))
        lines.append("| " + " | ".join(cells) + " |")
    rules = ("-" * (width + 2) if pad else "---" for width in widths)
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])


# Tables of results. Each function returns titles and rows.


def _columns(**columns: str) -> Callable[[Result], Cells]:
    """Returns a function that draws a column for each title and format of a row."""

    def draw(result: Result) -> Cells:
        rows = result["rows"]
        return list(columns), (
            [f.format_map(r) for f in columns.values()] for r in rows
        )

    return draw


def draw_stack(*results: Result) -> Cells:
    """Times an epoch of all tasks takes as long as in `stack()`, by backend."""
    lines: dict[str, dict[str, str]] = {}
    for result in results:
        backend = result["environment"]["backend"]
        for row in result["rows"]:
            first = row["system"] == "keras_psp.stack()"
            text = f"1 ({row['seconds']:.2f} s)" if first else f"{row['ratio']:.2f}"
            text = text if row["ratio"] < 10 else f"{row['ratio']:.0f}"
            lines.setdefault(row["system"], {})[backend] = text
    backends = [result["environment"]["backend"] for result in results]
    rows = [
        [system, *(line.get(backend, "") for backend in backends)]
        for system, line in lines.items()
    ]
    differences = (r["config"]["equal"]["largest_difference"] for r in results)
    rows.append(
        ["ten tasks trained alone differ by", *map("{:.0e}".format, differences)]
    )
    return ["", *(BACKENDS[backend] for backend in backends)], rows


def draw_stack_curve(result: Result) -> Cells:
    """Memory and times of models of K tasks."""
    rows = []
    for row in result["rows"]:
        step = f"{1000 * row['step']:.0f}" if "step" in row else "—"
        times = [f"{1000 * row[key]:.1f}" for key in ("answer", "add")]
        rows.append([f"{row['tasks']:,}", f"{row['bytes'] / 1e6:.0f}", *times, step])
    titles = ["tasks", "MB", "answer to 256 examples, ms", "one more task, ms"]
    return [*titles, "a step, 8 examples a task, ms"], rows


def draw_tenants_memory(result: Result) -> Cells:
    """What a process grows by, for one model and for loaded ones."""
    one, many = result["rows"]
    tenants = one["loaded"]
    names = {
        f"one model, {tenants} tenants": one,
        f"Keras models, {many['loaded']} loaded": many,
    }
    rows = []
    for name, row in names.items():
        measured, scaled = (f"{row[key] / 1e6:.0f}" for key in ("grown", "scaled"))
        share = f"{row['scaled'] / many['scaled']:.1%}"
        whole = f"{(row['process'] + row['scaled']) / 1e6:.0f}"
        rows.append([name, measured, scaled, share, whole])
    titles = ["", "MB measured", f"MB for {tenants}", "share", "with Keras itself, MB"]
    return titles, rows


def draw_tenants(result: Result) -> Cells:
    """Requests a second and latencies, by server and by how many tenants are asked."""
    rows = []
    for row in result["rows"]:
        cells = [row["system"], str(row["asked"]), str(row["size"])]
        cells.append(f"{row['rate']:.0f}" if row["rate"] > 10 else f"{row['rate']:.1f}")
        cells += [f"{row[key]:.0f}" for key in ("p50", "p95", "p99")]
        cells.append(f"{row['wrong']} / {row['failed']} of {row['requests']}")
        rows.append([*cells, str(row["changes"] or "")])
    titles = ["server", "tenants asked", "batch", "requests a second"]
    titles += ["p50, ms", "p95", "p99", "wrong / failed", "changes"]
    return titles, rows


def draw_machines(result: Result) -> Cells:
    """Areas under the curve over the machines, memory and times."""
    digits = {row["what"]: 2 if "lost" in row["what"] else 4 for row in result["rows"]}
    rows = [
        [what, *(f"{row[key]:.{digits[what]}f}" for key in ("mean", "least", "most"))]
        for what, row in zip(digits, result["rows"], strict=True)
    ]
    config = result["config"]
    within = config["within_half_a_point"] / config["machines"]
    rows += [
        ["machines that lose at most 0.5 points", f"{within:.1%}", "", ""],
        ["memory, as a share of all networks", f"{config['memory']:.3f}", "", ""],
        ["training together, s", f"{config['seconds_together']:.0f}", "", ""],
        [
            f"in a loop, s ({config['loop_of']} machines, scaled)",
            f"{config['seconds_loop']:.0f}",
            "",
            "",
        ],
    ]
    return ["", "mean", "least", "most"], rows


def draw_tabular(result: Result) -> Cells:
    """Accuracy or error of ensembles and of the package's, by data set."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[Row]]] = {}
    for row in result["rows"]:
        line = found.setdefault((row["data"], row["measure"]), {})
        line.setdefault((row["adapters"], row["system"]), []).append(row)
    names = {"first": "TabM-mini", "all": "BatchEnsemble (TabM)"}
    columns = list(next(iter(found.values())))
    titles = [f"{names[a]}, {'ours' if s == 'keras_psp' else s}" for a, s in columns]
    rows = []
    for (data, measure), line in found.items():
        cells = []
        for column in columns:
            figures = [row["figure"] for row in line[column]]
            cells.append(f"{mean(figures):.3f} ± {statistics.stdev(figures):.3f}")
        rows.append([f"{data} ({measure})", *cells])
    steps = []
    for column in columns:
        every = [row["step_ms"] for line in found.values() for row in line[column]]
        steps.append(f"{statistics.median(every):.1f}")
    return ["", *titles], [*rows, ["a step, ms", *steps]]


draw_infer = _columns(method="{method}", images="{example:.1f}", batches="{batch:.1f}")
draw_floor = _columns(
    **{"": "{part}", "ms a step": "{median_ms:.3f}", "over the floor": "{ratio:.2f}"}
)
draw_exact = _columns(
    **{"model": "{model}", "": "{what}", "largest difference": "{largest:.3g}"}
)
draw_merge_sizes = _columns(
    **{"tasks": "{tasks}", "units": "{units}"},
    **{key: f"{{{key}:.1f}}" for key in ("RegMean", "superposed", "no base")},
)


def draw_cost(result: Result) -> Cells:
    """Times relative to the plain layer's, and the plain layer's in ms."""
    columns: dict[str, None] = {}
    lines: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        column = f"{row['kind']}, {row['arrangement']}"
        columns[column] = None
        label = f"{row.get('width', '')} {row['name']}".strip()
        plain = row["name"] == "plain"
        text = f"{row['median_ms']:.2f} ms" if plain else f"{row['ratio']:.2f}"
        lines.setdefault(label, {})[column] = text
    rows = ([label, *(line[c] for c in columns)] for label, line in lines.items())
    return ["", *columns], rows


def draw_cost_each(*results: Result) -> Cells:
    """Times relative to the plain network's, by backend."""
    titles = ["", *(BACKENDS[r["environment"]["backend"]] for r in results)]
    lines: dict[str, list[str]] = {}
    for result in results:
        for row in result["rows"]:
            if row["name"] != "plain":
                tasks = "one task" if row["arrangement"] == "one" else "tasks mixed"
                label = f"{row['name']}: {row['kind']}, {tasks}"
                lines.setdefault(label, []).append(f"{row['ratio']:.2f}")
    return titles, [[label, *line] for label, line in lines.items()]


def draw_per_second(result: Result) -> Cells:
    """Examples or tokens a second, and their ratio to the plain network's."""
    columns: dict[str, None] = {}
    lines: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        column = f"{row['kind']}, {row['arrangement']}"
        columns[column] = None
        line = lines.setdefault(f"{row['network']}, {row['name']}", {})
        line[column] = f"{row['per_second']:.0f} ({1 / row['ratio']:.2f})"
    rows = ([label, *(line[c] for c in columns)] for label, line in lines.items())
    return ["", *columns], rows


def draw_throughput(*results: Result) -> Cells:
    """How many times as fast one network for eight is, on each backend."""
    titles = ["", *(BACKENDS[r["environment"]["backend"]] for r in results), "MB"]
    networks = {"mlp": "784-512-512-10", "resnet18": "ResNet18, width 0.25"}
    rows = []
    for same in zip(*(result["rows"] for result in results), strict=True):
        name, network, size = (same[0][key] for key in ("name", "network", "bytes"))
        if name == "plain":
            name = f"{networks[network]}: eight networks in turn"
        speeds = [row.get("times_as_fast") or 1 / row["ratio"] for row in same]
        megabytes = f"{size / 1e6:.1f}" if size else ""
        rows.append([name, *(f"{speed:.1f}" for speed in speeds), megabytes])
    return titles, rows


def draw_merge(*results: Result) -> Cells:
    """Accuracy, its share of the fine-tuned networks' and memory, by network."""
    titles, found = [""], []
    for result in results:
        titles += [NETWORKS[result["config"]["network"]], "share", "memory"]
        found.append({_merge_label(row): row for row in result["rows"]})
    rows = []
    for label in dict.fromkeys(label for each in found for label in each):
        row = [label]
        for each in found:
            if label in each:
                accuracy = mean(each[label]["accuracy"])
                tuned = mean(each["fine-tuned networks"]["accuracy"])
                share = each[label].get("share", 100 * accuracy / tuned)
                memory = each[label]["memory"]
                row += [f"{accuracy:.1f}", f"{share:.1f}", f"{memory:.2f}"]
            else:
                row += ["", "", ""]
        rows.append(row)
    return titles, rows


def _merge_label(row: Row) -> str:
    examples = row["examples"] if row["system"] != "task arithmetic" else 0
    return f"{row['system']}, {examples} examples" if examples else row["system"]


MEMORIES = (0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)


_FRONTIER_SUMMARY = (
    "superpose(budget=)",
    "copies, error feedback",
    "differences, error feedback",
    "T-Switch",
    "activation-aware SVD in 4 bits",
    "joint diagonalization, full cores",
    "RegMean",
)


def draw_frontier(
    result: Result, memories: Sequence[float] = MEMORIES, in_brackets: str = "way"
) -> Cells:
    """The share of the fine-tuned accuracy in so much memory, by system.

    Behind it in brackets is the share of the way there from the floor, or how often
    answers are those of the fine-tuned networks (`"agreement"`). Of all sizes it is the
    one with the largest figure in brackets.
    """
    rows = []
    for system, points in read_frontier(result).items():
        cells = []
        for memory in memories:
            within = [point for point in points if point["memory"] <= 1.005 * memory]
            best = max(within, key=lambda point: mean(point[in_brackets]), default=None)
            cells.append(_write_share(best, in_brackets) if best else "")
        if any(cells):
            rows.append([system, *cells])
    return ["", *(f"{memory:g}" for memory in memories)], rows


def draw_frontier_summary(result: Result) -> Cells:
    """The same, without brackets, for some systems and sizes."""
    titles, rows = draw_frontier(result)
    kept = [titles.index(title) for title in ("", "0.2", "0.25", "0.35", "0.5", "1")]
    some = [row for row in rows if row[0] in _FRONTIER_SUMMARY]
    cells = [[row[i].split(" (")[0] for i in kept] for row in some]
    return [titles[i] for i in kept], cells


def read_frontier(result: Result) -> dict[str, list[Row]]:
    """Returns for each system a row for each of its sizes, smallest first.

    A row has the mean memory, and the lists of the other figures of all seeds.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for row in result["rows"]:
        found.setdefault(row["system"], {}).setdefault(row["size"], []).append(row)
    points = {
        system: [
            {"memory": mean([row["memory"] for row in same])}
            | {key: [row[key] for row in same] for key in _FIGURES}
            for same in sizes.values()
        ]
        for system, sizes in found.items()
    }
    return {
        system: sorted(each, key=lambda point: point["memory"])
        for system, each in points.items()
    }


_FIGURES = ("share", "way", "agreement")


def _write_share(point: Row, in_brackets: str) -> str:
    shares = point["share"]
    deviation = f" ± {statistics.stdev(shares):.2f}" if len(shares) > 1 else ""
    return f"{mean(shares):.2f}{deviation} ({mean(point[in_brackets]):.2f})"


def draw_export(*results: Result) -> Cells:
    """The largest difference, or "no", by model, backend and format."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        for row in result["rows"]:
            text = "no" if "error" in row else f"{row['difference']:.0e}"
            key = (row["model"], result["environment"]["backend"])
            lines.setdefault(key, {})[row["format"]] = text
    formats = list(dict.fromkeys(format for line in lines.values() for format in line))
    models = list(dict.fromkeys(model for model, _ in lines))
    rows = (
        [*key, *(lines[key].get(format, "—") for format in formats)]
        for key in sorted(lines, key=lambda key: models.index(key[0]))
    )
    titles = ["", "from", *(f"`{format}`" for format in formats)]
    return titles, _hide_repeated(rows)


# What the hub's rows hold that must not be larger than a number.
_HUB_CHECKS = {
    "equal": (("each", "mixed"), 1e-5),
    "others stay": (("adapters others",), 1e-6),
    "file": (("file",), 1e-5),
    "extract": (("extract",), 1e-5),
    "superpose": (("superpose",), 1e-5),
    "export": (("export",), 1e-5),
}


def draw_hub(result: Result) -> Cells:
    """What holds for each model, and how much of it is superposed or per task."""

    def percent(row: Row, key: str) -> str:
        return f"{100 * row[key]:.1f}" if key in row else "—"

    rows = [
        [row["model"], percent(row, "warn"), percent(row, "copy")]
        + [_check_hub(row, name) for name in _HUB_CHECKS]
        + [row.get("error", "").split(":")[0]]
        for row in result["rows"]
    ]
    return ["model", "warn %", "copy %", *_HUB_CHECKS, "fails at"], rows


def draw_hub_sample(*results: Result) -> Cells:
    """What does not hold, or was not measured, for some models by backend."""
    lines: dict[str, dict[str, str]] = {}
    for result in results:
        for row in result["rows"]:
            marks = {name: _check_hub(row, name) for name in _HUB_CHECKS}
            without = [f"{k}: {mark}" for k, mark in marks.items() if mark != "yes"]
            text = ", ".join(without) or "all hold"
            lines.setdefault(row["model"], {})[result["environment"]["backend"]] = text
    backends = [result["environment"]["backend"] for result in results]
    rows = [
        [model, *(line.get(backend, "—") for backend in backends)]
        for model, line in lines.items()
    ]
    return ["model", *(BACKENDS[backend] for backend in backends)], rows


def _check_hub(row: Row, name: str) -> str:
    """Whether one of the checks holds for a row."""
    keys, most = _HUB_CHECKS[name]
    if name == "export" and "plain export" in row:
        return "not Keras'"
    if any(key not in row for key in keys):
        return "—"
    return "yes" if max(row[key] for key in keys) <= most else "no"


def draw_adapters(result: Result) -> Cells:
    """Losses of each text, then what generates and holds its adapters."""
    rows = []
    for row in result["rows"]:
        if "text" in row:
            losses = [f"{row[key]:.2f}" for key in ("own", "base", "other")]
            rows.append([f"loss on {row['text']}", *losses, ""])
        elif "prompts" in row:
            speeds = [f"{row[key]:.0f}" for key in ("mixed", "one by one")]
            what = f"characters a second, {row['prompts']} prompts"
            rows.append([what, *speeds, "", f"{row['ratio']:.1f}"])
        else:
            sizes = [f"{row[key] / 1e6:.1f}" for key in ("adapters", "models")]
            ratio = row["models"] / row["adapters"]
            rows.append([f"MB of {row['bytes']} tasks", *sizes, "", f"{ratio:.1f}"])
    titles = ["", "adapters, mixed", "base, or one by one", "best other", "times"]
    return titles, rows


def draw_serving(result: Result) -> Cells:
    """Memory and speed of many models and of one, by model."""

    def write(row: Row) -> list[str]:
        figures = (row["models"], row["superposed"])
        digits = 0 if max(figures) >= 100 or "disk" in row["measure"] else 1
        texts = (f"{figure:.{digits}f}" for figure in figures)
        return [row["model"], row["measure"], *texts, f"{row['ratio']:.2f}"]

    titles = ["", "", "20 models", "superposed", "ratio"]
    return titles, _hide_repeated(map(write, result["rows"]))


def draw_devices(*results: Result) -> Cells:
    """The largest differences from one device's training, by engine and model."""
    rows = [
        [
            row["engine"],
            f"{row['model']}, {row['dtype']}",
            CONSOLIDATIONS[row["optimizer"]],
            *(f"{row[part]:.0e}" for part in ("losses", "weights", "optimizer_state")),
            "yes" if row["unknown_alone"] else "no",
        ]
        for result in results
        for row in result["rows"]
    ]
    titles = ["engine", "model", "optimizer", "losses", "weights"]
    return [*titles, "optimizer's state", "NaN stays its task's"], _hide_repeated(rows)


def draw_growth(result: Result) -> Cells:
    """Bytes, and microseconds an example, by what grows, size and layer."""
    times = [f"{k}, {a}" for k in ("forward", "training") for a in ("one", "mixed")]
    rows = []
    for row in result["rows"]:
        size = f"{row[row['over']]:,}"
        cells = (f"{row[time]:,.3g}" if time in row else "" for time in times)
        megabytes = f"{row['bytes'] / 1e6:,.3g}"
        if row.get("extrapolated"):
            megabytes += " (not built)"
        rows.append([row["over"], size, row["layer"], megabytes, *cells])
    return ["over", "size", "layer", "MB", *times], rows


def _hide_repeated(rows: Iterable[list[str]]) -> list[list[str]]:
    """Leaves out a row's first cell where it is that of the row before."""
    shown, last = [], None
    for first, *cells in rows:
        shown.append(["" if first == last else first, *cells])
        last = first
    return shown


def draw_capacity(result: Result) -> Cells:
    """What a task keeps after others, in the paper and here, by width."""

    def text(kept: dict[str, float]) -> str:
        values = ", ".join(f"{value:g}" for value in kept.values())
        return f"{values} ({', '.join(kept)})" if kept else ""

    rows = (
        [f"{row['interference']:g}", text(row["paper"]), text(row["here"])]
        for row in result["rows"]
    )
    return ["(K - 1) / M", "the paper (width)", "here (widths)"], rows


def draw_capacity_with_gram(result: Result) -> Cells:
    """What tasks have on average of what the first had, without and with `Gram`."""
    rows = (
        [f"{row['interference']:g}"]
        + [", ".join(f"{value:.1f}" for value in row[key]) for key in ("none", "gram")]
        for row in result["rows"]
    )
    return ["(K - 1) / M", "none (256)", "`Gram` (128, 256, 512)"], rows


# Tables of runs of the benchmark.


def summarize(result: Result) -> list[Row]:
    """Returns a row for each system: figures over its seeds.

    Where a result has its runs' matrices they are summarized; where it was transcribed,
    its rows are summaries already.
    """
    if not all("matrix" in row for row in result["rows"]):
        return result["rows"]
    systems: dict[str, list[Row]] = {}
    for row in result["rows"]:
        systems.setdefault(str(read_system(row["config"])), []).append(row)
    return [_summarize(runs) for runs in systems.values()]


def read_config(options: Row) -> Config:
    """Returns the config of a run. Options that it did not know yet have defaults."""
    rest = {key: value for key, value in options.items() if key != "experiment"}
    return EXPERIMENTS[options["experiment"]](**rest)


def read_system(options: Row) -> Config:
    """Returns what the runs of a system have in common: the config with seed 0."""
    return dataclasses.replace(read_config(options), seed=0)


def _summarize(runs: list[Row]) -> Row:
    matrices = [run["matrix"] for run in runs]
    lengths = range(1, len(matrices[0]) + 1)
    drifts = [run["contexts"]["orthogonality_drift"] for run in runs]
    return {
        "config": runs[0]["config"],
        "average": {str(n): [mean(m[n - 1]) for m in matrices] for n in lengths},
        "task_0": {str(n): [m[n - 1][0] for m in matrices] for n in lengths},
        "just_trained": [run["metrics"]["learning_accuracy"] for run in runs],
        "forgetting": [run["metrics"]["forgetting"] for run in runs],
        "seconds": [run["train_seconds"] for run in runs],
        "bytes": runs[0]["memory"]["weights"],
        "beside_bytes": runs[0]["memory"]["consolidation"],
        "bits_per_task": runs[0]["contexts"]["bits_per_task"],
        "drift": None if None in drifts else max(drifts),
        "afterwards": [run.get("afterwards", {}) for run in runs],
    }


def draw_runs(
    *results: Result,
    columns: Sequence[str] = ("options", "all tasks", "task 0"),
    systems: Sequence[str] = (),
) -> Cells:
    """A row for each system, the first that has its name."""
    rows: dict[str, Row] = {}
    for result in results:
        for row in summarize(result):
            rows.setdefault(name_system(row["config"]), row)
    cells = (
        [name, *(_COLUMNS[column](rows[name]) for column in columns)]
        for name in systems or rows
    )
    return ["", *columns], cells


def _average(tasks: int) -> Callable[[Row], str]:
    return lambda row: _percent(row["average"][str(tasks)])


def _megabytes(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key] / 1e6:.1f} MB" if row[key] else "0 MB"


def _after(*path: str) -> Callable[[Row], str]:
    """What runs measured after the last task; nothing where they did not."""

    def write(row: Row) -> str:
        first, *others = path
        found = [x[first] for x in row["afterwards"] if first in x]
        known = [functools.reduce(operator.getitem, others, x) for x in found]
        return _percent(known) if known else ""

    return write


def _few_bytes(row: Row) -> str:
    found = [x["in_few_bits"] for x in row["afterwards"] if "in_few_bits" in x]
    return f"{found[0]['weights'] / 1e6:.1f} MB" if found else ""


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "options": lambda row: _write_options(row["config"]),
    **{f"{tasks} tasks": _average(tasks) for tasks in (10, 20, 30, 50)},
    "all tasks": lambda row: _percent(list(row["average"].values())[-1]),
    "task 0": lambda row: _percent(list(row["task_0"].values())[-1]),
    "just trained": lambda row: _percent(row["just_trained"]),
    "forgetting": lambda row: _percent(row["forgetting"]),
    "s": lambda row: f"{mean(row['seconds']):.0f}",
    "weights": _megabytes("bytes"),
    "beside": _megabytes("beside_bytes"),
    "parts in few bits": _after("in_few_bits", "accuracy"),
    "their weights": _few_bytes,
    "guessed by image": _after("guessed", "by_image", "accuracy"),
    "guessed by 32": _after("guessed", "by_batch", "accuracy"),
}


def draw_retention(result: Result) -> Cells:
    """Systems beside their controls: accuracy and bytes, by the number of tasks."""
    found = summarize(result)
    # What no run measured has no column.
    columns = [name for name in _RETENTION if any(_COLUMNS[name](x) for x in found)]
    rows = []
    for row in found:
        config = row["config"]
        cells = (_COLUMNS[name](row) for name in columns)
        options = _write_named_options(config)
        rows.append([_name_control(config), options, str(config["tasks"]), *cells])
    return ["", "options", "tasks", *columns], rows


_RETENTION = (
    *("all tasks", "task 0", "just trained", "weights", "beside"),
    *("parts in few bits", "their weights", "guessed by image", "guessed by 32"),
)


def _name_control(config: Row) -> str:
    name = name_system(config)
    if config["joint"]:
        return "joint training"
    if config["protocol"] == "none" and config["units"] != 256:
        name += f", {config['units']} units"
    return name


def _write_named_options(config: Row) -> str:
    """The options of a run that its recipe and its protocol do not set."""
    settings = dict(RECIPES.get(config["recipe"], {}))
    words = [(key, config[key]) for key in ("protocol", "recipe")]
    words = [(key, value) for key, value in words if value != "none"]
    if config["protocol"] in PROTOCOLS:
        protocol = PROTOCOLS[config["protocol"]]
        settings |= {**protocol.training, **protocol.fixed}
    for key, default in {**OPTIONS, "units": 256, "rank": 0, "joint": False}.items():
        if config[key] != settings.get(key, default):
            words.append((key, config[key]))
    texts = (
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in words
    )
    return f"`{' '.join(texts)}`"


def draw_gram_families(result: Result) -> Cells:
    """Average accuracy after the last task, by family, without and with `Gram`."""
    found: dict[str, dict[str, str]] = {"none": {}, "gram": {}}
    for row in summarize(result):
        config = _with_defaults(row["config"])
        n = max(row["average"], key=int)
        found[config["consolidation"]][config["context"]] = _percent(row["average"][n])
    titles = ["context", *(f"`{family}`" for family in found["none"])]
    rows = (
        [title, *(found[key][family] for family in found["none"])]
        for key, title in (("none", "without"), ("gram", "`Gram`"))
    )
    return titles, rows


def draw_incremental(result: Result) -> Cells:
    """The heads of a ResNet18, with and without statistics for each task."""
    titles = ["", "options", "all tasks", "earlier tasks", "with `--norm shared`"]
    rows = (
        [
            row["system"],
            _write_options(row["config"]),
            _percent(row["average"]) if "average" in row else "",
            _percent(row["earlier"]) if "earlier" in row else "",
            ", ".join(map(_percent, row["norm_shared"])),
        ]
        for row in result["rows"]
    )
    return titles, rows


def draw_families(*results: Result) -> Cells:
    """All families; the last result may be the cost of each one's network."""
    runs = [each for each in results if "part" not in each["config"]]
    costs = [each for each in results if "part" in each["config"]]
    ratios = {row["name"]: row["ratio"] for each in costs for row in each["rows"]}
    titles, lines = ["family", "contexts"], {}
    for i, result in enumerate(runs):
        tasks = str(result["config"]["tasks"])
        titles += [f"average, {tasks} tasks (%)", f"task 0, {tasks} tasks (%)"]
        for row in summarize(result):
            config = _with_defaults(row["config"])
            family = config["context"]
            family = "complex-valued" if config["complex_valued"] else family
            line = lines.setdefault((family, config["learnable"]), {})
            line["drift"] = max(line.get("drift", 0), row["drift"] or 0)
            line["bits"] = row["bits_per_task"]
            line[i] = [_percent(row[key][tasks], True) for key in ("average", "task_0")]
    rows = []
    for (family, learned), line in lines.items():
        ratio = ratios.get(f"{family}-learned" if learned else family)
        cells = [cell for i in range(len(runs)) for cell in line.get(i, ["—", "—"])]
        cells.append(str(line["bits"]))
        cells.append(f"{line['drift']:.1e}" if learned else "—")
        cells.append("—" if ratio is None else f"{ratio:.2f}")
        rows.append([family, "learned" if learned else "fixed", *cells])
    titles += ["bits per task", "orthogonality drift", "step time / plain Dense"]
    return titles, rows


def _with_defaults(config: Row) -> Row:
    """Returns the options that tables name, whether they were given or not."""
    return {key: config.get(key, default) for key, default in OPTIONS.items()}


def name_system(config: Row) -> str:
    given = _with_defaults(config)
    if given["separate"]:
        return f"{config['tasks']} networks"
    words = ["standard" if given["context"] == "identity" else "superposed"]
    if given["context"] not in ("identity", "binary"):
        words.append(f"`{given['context']}`")
    if given["learnable"]:
        words.append("learned contexts")
    kept = given["consolidation"]
    if kept != "none":
        words.append(CONSOLIDATIONS.get(kept, kept))
    if config.get("rank"):
        words.append(f"rank {config['rank']}")
    return ", ".join(words)


def _write_options(config: Row) -> str:
    words = []
    for key, value in _with_defaults(config).items():
        if value != OPTIONS[key]:
            words.append("--" + key.replace("_", "-"))
            words += [] if value is True else [f"{value}"]
    return f"`{' '.join(words)}`" if words else ""


def _percent(figure: Figure, show_number: bool = False) -> str:
    """Writes a mean, the deviation over seeds if there are several, and how many."""
    if isinstance(figure, list):
        deviation = statistics.stdev(figure) if len(figure) > 1 else None
        figure = {"mean": mean(figure), "deviation": deviation, "n": len(figure)}
    if not isinstance(figure, dict):
        return f"{figure:.1f}"
    text = f"{figure['mean']:.1f}"
    if figure["deviation"] is not None:
        text += f" ± {figure['deviation']:.1f}"
        text += f" (n={figure['n']})" if show_number else ""
    return text


def mean(figure: Figure) -> float:
    if isinstance(figure, dict):
        return figure["mean"]
    return statistics.fmean(figure) if isinstance(figure, list) else figure


# Where the tables stand.


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        page: The path of a README, or of a module with the table in a docstring.
        draw: Makes titles and rows of the results.
        results: The results' names.
    """

    page: str
    draw: Callable[..., Cells]
    results: tuple[str, ...]


_BENCHMARKS, _CONSOLIDATION, _CONTEXTS, _DISTRIBUTION, _EXPORTING, _MODELS, _SURGERY = (
    f"keras_psp/{name}/README.md"
    for name in (
        "benchmarks",
        "consolidation",
        "contexts",
        "distribution",
        "exporting",
        "models",
        "surgery",
    )
)
_COMPRESSION, _HUB, _MANY = (
    f"keras_psp/surgery/{name}.md" for name in ("compression", "kerashub", "many_tasks")
)
_TENANTS = "examples/tenants/README.md"
_CAPACITY = "keras_psp/diagnostics/capacity.py"
_MERGE = ("merge-mlp-8-tasks-jax", "merge-resnet18-8-tasks-tensorflow")
_HEADLINE = functools.partial(
    draw_runs,
    columns=("options", "10 tasks", "50 tasks", "weights"),
    systems=("standard", "standard, `EWC`", "superposed", "superposed, `EWC`")
    + ("superposed, `Gram`", "50 networks"),
)
_LEARNING = functools.partial(
    draw_runs,
    columns=("10 tasks", "20 tasks", "30 tasks", "50 tasks")
    + ("task 0", "just trained", "forgetting", "s", "beside"),
)
_BENCHMARK = functools.partial(
    draw_runs, columns=("options", "10 tasks", "50 tasks", "task 0", "weights")
)


def _each(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-{backend}" for backend in BACKENDS)


_FRONTIER = "frontier-mlp-8-tasks-jax"
TABLES = {
    "permuted": Table(
        "README.md",
        _HEADLINE,
        ("suite-consolidation-3-seeds", "permuted-mnist"),
    ),
    "frontier": Table("README.md", draw_frontier_summary, (_FRONTIER,)),
    "frontier-8": Table(_COMPRESSION, draw_frontier, (_FRONTIER,)),
    "frontier-32": Table(
        _COMPRESSION,
        functools.partial(draw_frontier, memories=(0.25, 0.35, 0.5, 0.6, 0.8)),
        ("frontier-mlp-32-tasks-jax",),
    ),
    "frontier-100": Table(
        _COMPRESSION,
        functools.partial(draw_frontier, memories=(0.35, 0.5, 0.8, 1)),
        ("frontier-mlp-100-tasks-jax",),
    ),
    "frontier-resnet18": Table(
        _COMPRESSION,
        functools.partial(draw_frontier, memories=(0.25, 0.35, 0.5, 0.75, 1.1)),
        ("frontier-resnet18-8-tasks-jax",),
    ),
    "frontier-cifar": Table(
        _COMPRESSION,
        functools.partial(
            draw_frontier,
            memories=(0.25, 0.35, 0.5, 0.6, 0.75, 1.1),
            in_brackets="agreement",
        ),
        ("frontier-resnet18-cifar10-8-tasks-jax",),
    ),
    "frontier-lite0": Table(
        _COMPRESSION,
        functools.partial(
            draw_frontier, memories=(0.5, 0.75, 1, 1.3), in_brackets="agreement"
        ),
        ("frontier-lite0-8-tasks-torch",),
    ),
    "frontier-minilm": Table(
        _COMPRESSION,
        functools.partial(
            draw_frontier,
            memories=(0.25, 0.3, 0.35, 0.5, 0.65),
            in_brackets="agreement",
        ),
        ("frontier-minilm-10-tasks-jax",),
    ),
    "benchmark": Table(_BENCHMARKS, _BENCHMARK, ("permuted-mnist",)),
    "retention": Table(_BENCHMARKS, draw_retention, ("suite-retention-jax",)),
    "incremental": Table(_BENCHMARKS, draw_incremental, ("incremental-cifar",)),
    "consolidation": Table(_CONSOLIDATION, _LEARNING, ("suite-consolidation-3-seeds",)),
    "cost-consolidation": Table(
        _CONSOLIDATION, draw_cost_each, _each("cost-consolidation")
    ),
    "gram-families": Table(_CONSOLIDATION, draw_gram_families, ("gram-families",)),
    "families": Table(
        _CONTEXTS,
        draw_families,
        ("families-10-tasks-jax", "families-50-tasks-jax", "cost-network-jax"),
    ),
    **{
        name: Table(_CONTEXTS, draw_cost, (name,))
        for name in (*_each("cost-layers"), *_each("cost-crossover"))
    },
    "devices": Table(_DISTRIBUTION, draw_devices, _each("devices")),
    "merge-all": Table(_COMPRESSION, draw_merge, _MERGE),
    "merge-sizes": Table(_COMPRESSION, draw_merge_sizes, ("merge-sizes",)),
    "cost-serving": Table(_MANY, draw_throughput, _each("cost-serving")),
    "cost-bert": Table(_MANY, draw_cost_each, _each("cost-bert")),
    "cost-resnet": Table(_BENCHMARKS, draw_cost_each, _each("cost-resnet")),
    "cost-first-call": Table(_MANY, draw_cost_each, ("cost-first-call-jax",)),
    "infer": Table(_SURGERY, draw_infer, ("infer-jax",)),
    "adapters": Table(_HUB, draw_adapters, ("adapters-jax",)),
    "hub": Table(_HUB, draw_hub, ("hub-torch",)),
    "hub-sample": Table(_HUB, draw_hub_sample, ("hub-jax", "hub-tensorflow")),
    "stack": Table(_MANY, draw_stack, _each("stack")),
    "stack-curve": Table(_MANY, draw_stack_curve, ("stack-curve-jax",)),
    "machines": Table(_MANY, draw_machines, ("machines-jax",)),
    "stack-tables": Table(_MODELS, draw_tabular, ("stack-tables-torch",)),
    "tenants-memory": Table(_TENANTS, draw_tenants_memory, ("tenants-memory-jax",)),
    "tenants": Table(_TENANTS, draw_tenants, ("tenants-jax",)),
    "export": Table(_EXPORTING, draw_export, _each("export")),
    "serving": Table(_EXPORTING, draw_serving, ("serving-tensorflow",)),
    "capacity": Table(_CAPACITY, draw_capacity, ("capacity",)),
    "capacity-gram": Table(_CAPACITY, draw_capacity_with_gram, ("capacity-gram",)),
}


def _replace(text: str, name: str, table: Table, root: Path) -> str:
    """Returns the page's text with the table as its results have it."""
    results = {each: load(each, root) for each in table.results}
    titles, rows = table.draw(*results.values())
    if table.page.endswith(".md"):
        begin, end = f"<!-- table: {name} -->", "<!-- /table -->"
        pattern, flags = f"{re.escape(begin)}.*?{end}", re.DOTALL
        caption = _caption(results, table.page)
        new = "\n\n".join([begin, write_table(titles, rows), caption, end])
    else:
        drawn = write_table(titles, rows, pad=True)
        first = re.escape(drawn.split("\n")[0])
        pattern, flags = rf"(?<=    ){first}\n(?:    \|.*\n)*", 0
        new = drawn.replace("\n", "\n    ") + "\n"
    new_text, number = re.subn(pattern, lambda _: new, text, flags=flags)
    if number != 1:
        raise ValueError(f"{table.page} has {number} tables {name!r}")
    return new_text


def _caption(results: dict[str, Result], page: str) -> str:
    """Says of each result where it is and where it comes from."""
    links: dict[str, list[str]] = {}
    for name, result in results.items():
        path = os.path.relpath(f"tools/results/{name}.json", os.path.dirname(page))
        links.setdefault(_describe(result), []).append(f"[{name}]({path})")
    return "\n".join(f"{', '.join(each)}: {said}." for said, each in links.items())


def _describe(result: Result) -> str:
    environment: dict[str, Any] = result["environment"]
    versions = environment["versions"]
    seed = result["seed"]
    seeds = seed if isinstance(seed, list) else [seed]
    words = [result["provenance"]]
    if result["provenance"] == "measured":
        words = [f"measured on {result['date']} by `{result['command']}`"]
    words.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    shown = ("keras-psp", "keras", environment["backend"])
    words += [f"{name} {versions[name]}" for name in shown if name in versions]
    cpus = environment["device"].get("cpus")
    words += [f"{cpus} CPU{'s' * (cpus > 1)}"] if cpus else []
    deviations = [row["ratio_deviation"] for row in result["rows"] if "ms" in row]
    noise = max(deviations, default=result["config"].get("largest_ratio_deviation"))
    if noise is not None:
        words.append(
            f"the ratios' median deviation over the rounds is {noise:.0%} or less"
        )
    return "; ".join(words)
