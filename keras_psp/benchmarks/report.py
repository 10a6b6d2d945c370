"""Reports: tables and plots of one run or many, to read and to open in a browser."""

import base64
import csv
import dataclasses
import html
import io
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keras_psp._core.checks import check_list
from keras_psp._core.figures import save
from keras_psp._core.files import open_atomically
from keras_psp._core.table import html_table
from keras_psp._core.table import to_pandas
from keras_psp.benchmarks._latex import write_latex
from keras_psp.benchmarks._plots import draw
from keras_psp.benchmarks._tables import describe_system
from keras_psp.benchmarks._tables import group
from keras_psp.benchmarks.result import FILE_NAME
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.search import FILE_NAME as SEARCH_NAME
from keras_psp.benchmarks.search import Search
from keras_psp.benchmarks.suites import EXPERIMENTS

# Control characters, separators of lines and paragraphs, marks of writing direction.
_CONTROL = ("Cc", "Cf", "Zl", "Zp")

LEGEND = (
    "Average: mean accuracy over all tasks after the last one; the best system that "
    "learns task after task in one network is in bold. Just trained: mean accuracy on "
    "each task right after its training. Forgetting: how far tasks fell from their "
    "best accuracy. Backward transfer: how later tasks changed the accuracy on earlier "
    "ones. Forward transfer: how much better than guessing a task is before its "
    "training. Weights: all that is needed to answer for every task. Beside: what the "
    "consolidation keeps while training. Parts in few bits: the average once tasks' "
    "own parts are rounded to `part_bits`. Task guessed: the average over `guessed` "
    "images of each task if the model must also find their task, image by image or for "
    "32 of a task together. Context bits/task: what the contexts of one more task "
    "take. Drift: the largest element of |C C^T - I| of any layer's contexts C, if "
    "they are learned. Numbers with ± are means and standard deviations over runs with "
    "different seeds."
)
CAPTIONS = {
    "retention": "Accuracy over the course of the tasks",
    "matrices": "Accuracy on each task after each task",
    "memory": "Accuracy against memory",
    "sizes": "Accuracy against the size of the network",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report()` has written.

    Attributes:
        tables: A list of rows for each title; a row is a dictionary of strings. The
            best average is in `**`. The tables of searches come first.
        paths: The files: `report.html`, a page with everything in it, `report.md`,
            `runs.csv`, and the plots.
        left_out: For each run that is left out, the reason.
        runs: A dictionary for each run: the config, the metrics and times, as numbers.
    """

    tables: dict[str, list[dict[str, str]]]
    paths: list[Path]
    left_out: list[str]
    runs: list[dict[str, Any]]

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` of the runs, one a row.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return to_pandas(self.runs)

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        return "".join(
            f"<h4>{html.escape(title)}</h4>{html_table(rows)}"
            for title, rows in self.tables.items()
        )


def report(
    runs: Iterable[str | os.PathLike],
    output: str | os.PathLike | None = None,
    paper: bool = False,
) -> Report:
    """Writes tables and plots of runs; runs with equal settings share a table.

    The best runs of a search for hyperparameters are in a table of the search too.

    Args:
        runs: Folders of runs, folders that hold such folders, or `result.json` files.
        output: Folder to write to. Defaults to the innermost folder that holds all of
            `runs`.
        paper: Boolean, whether to write what a paper needs, too: each plot as PDF and
            SVG, and the tables in LaTeX, for the package booktabs.

    Returns:
        A `Report`. It leaves out runs whose result is missing, cannot be read, or is
        damaged, and says so.

    It writes into `output` only, whatever a result says. Text from results and names of
    folders is escaped in each format: it is no Markdown, no HTML and no formula.

    Raises:
        FileNotFoundError: There is nothing there, or no result in it.
        TypeError: `runs` is no list.
        ValueError: No runs; one named twice; two that have the same config and seed.
        OSError: The folder cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_psp import benchmarks
    >>> folder = tempfile.mkdtemp()
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20, units=32)
    >>> result = benchmarks.run(config, output=folder, overwrite=True)
    >>> [path.name for path in benchmarks.report([folder]).paths[:3]]
    ['report.html', 'report.md', 'runs.csv']
    """
    runs = check_list("runs", runs, "folders")
    given = [Path(os.path.abspath(run)) for run in runs]
    given = [path.parent if path.name == FILE_NAME else path for path in given]
    if not given:
        raise ValueError("A report needs at least one run.")
    if len(set(given)) < len(given):
        raise ValueError(f"Each run may be named once. Received: {[*map(str, given)]}")
    folders = list(dict.fromkeys(found for path in given for found in _find(path)))
    loaded: list[tuple[Path, RunResult]] = []
    left_out: list[str] = []
    for folder in folders:
        try:
            loaded.append((folder, RunResult.load(folder)))
        except (OSError, ValueError) as error:
            left_out.append(str(error))
    if not loaded:
        raise FileNotFoundError(f"There is no result there. {' '.join(left_out)}")
    published = {name: config.published for name, config in EXPERIMENTS.items()}
    groups = group(loaded, published)
    output = Path(os.path.commonpath(given)) if output is None else Path(output)
    output.mkdir(parents=True, exist_ok=True)

    pictures, vectors = {}, {}
    for one in groups:
        for name, figure in draw(one).items():
            pictures[one.slug, name] = save(figure, "png")
            for kind in ("pdf", "svg") if paper else ():
                vectors[f"{one.slug}-{name}.{kind}"] = save(figure, kind)
    names = {folder: _name(folder, output) for folder, _ in loaded}
    sections = _searches(loaded, output, left_out)
    sections += [
        {
            "title": one.title,
            "note": one.note,
            "rows": one.rows(),
            "commands": one.commands(),
            "pictures": [
                (CAPTIONS[name], f"{slug}-{name}.png", data)
                for (slug, name), data in pictures.items()
                if slug == one.slug
            ],
        }
        for one in groups
    ]
    described = [(names[folder], _describe_run(result)) for folder, result in loaded]
    lines = [_line(names[folder], result) for folder, result in loaded]
    files = {
        "report.html": _encode(_page(sections, described, left_out)),
        "report.md": _encode(_markdown(sections, described, left_out)),
        "runs.csv": _encode(_csv(lines)),
        **{name: data for section in sections for _, name, data in section["pictures"]},
        **vectors,
    }
    if paper:
        files["report.tex"] = _encode(write_latex(sections))
    for name, content in files.items():
        with open_atomically(output / name) as file:
            file.write(content)
    tables = {section["title"]: section["rows"] for section in sections}
    return Report(tables, [output / name for name in files], left_out, lines)


def _find(path: Path) -> list[Path]:
    """Returns the folders of runs in a folder, or the folder if it is or holds none."""
    if not path.exists():
        raise FileNotFoundError(f"There is no result there. Received: {str(path)!r}")
    if (path / FILE_NAME).exists():
        return [path]
    return sorted(found.parent for found in path.rglob(FILE_NAME)) or [path]


def _searches(
    loaded: list[tuple[Path, RunResult]], output: Path, left_out: list[str]
) -> list[dict[str, Any]]:
    """Returns a section for each search that some of the runs belong to."""
    found: dict[Path, list[RunResult]] = {}
    for folder, result in loaded:
        if (folder.parent / SEARCH_NAME).exists():
            found.setdefault(folder.parent, []).append(result)
    sections = []
    for folder, results in found.items():
        try:
            search = Search.load(folder)
        except (OSError, ValueError) as error:
            left_out.append(str(error))
            continue
        results = [result for result in results if search.has_trial(result)]
        if not results:
            continue
        sections.append(
            {
                "title": f"Search {_name(folder, output)}: best of {len(results)} runs",
                "note": f"KerasTuner ({search.tuner}) has searched "
                f"{search.describe_space()}. The best run was chosen by its test "
                "accuracy, which is therefore a little too high: measure it again with "
                "another seed.",
                "rows": search.rows(results),
                "commands": [],
                "pictures": [],
            }
        )
    return sections


def _name(folder: Path, output: Path) -> str:
    return folder.name if folder == output else os.path.relpath(folder, output)


def _describe_run(result: RunResult) -> str:
    config = ", ".join(f"{key}={value}" for key, value in result.config.items())
    versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
    device = result.device
    return (
        f"{result.experiment}: {config}. {versions}. {device['name']} of "
        f"{device['platform']}, {device['cpus']} CPUs; "
        f"jit_compile={result.jit_compile}; "
        f"{result.timings['total_seconds']:.0f} s in all."
    )


def _encode(text: str) -> bytes:
    # JSON may hold halves of characters, which no file can; they are written as codes.
    return text.encode("utf-8", "backslashreplace")


def _markdown(
    sections: list[dict[str, Any]],
    described: list[tuple[str, str]],
    left_out: list[str],
) -> str:
    def table_row(cells):
        return "| " + " | ".join(cells) + " |"

    lines = ["# Report", ""]
    for section in sections:
        columns = [*section["rows"][0]]
        lines += [f"## {_escape(section['title'])}", "", _escape(section["note"]), ""]
        lines += [table_row(columns), "|---" * len(columns) + "|"]
        for row in section["rows"]:
            cells = {name: _escape(cell) for name, cell in row.items()}
            cells["average %"] = row["average %"]  # Whose asterisks are ours.
            lines += [table_row(cells.values())]
        lines += [""]
        for caption, name, _ in section["pictures"]:
            lines += [f"![{caption}]({name})", ""]
        if section["commands"]:
            commands = "\n".join(map(_one_line, section["commands"]))
            # As HTML, where Markdown's own characters are codes.
            text = html.escape(commands, quote=False)
            text = re.sub(r"[][*`$\\]", lambda found: f"&#{ord(found[0])};", text)
            lines += [
                "These commands repeat the figures:",
                "",
                f"<pre>{text}</pre>",
                "",
            ]
    lines += [LEGEND.replace("|", r"\|"), "", "## Runs", ""]
    lines += [f"- **{_escape(name)}**: {_escape(text)}" for name, text in described]
    lines += [f"- Left out: {_escape(reason)}" for reason in left_out]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Returns text that Markdown shows as it is, in one line."""
    text = html.escape(_one_line(text), quote=False)
    return re.sub(r"([\\`*|\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _one_line(text: str) -> str:
    """Replaces line breaks and other control characters by spaces."""
    return "".join(" " if unicodedata.category(x) in _CONTROL else x for x in text)


def _page(
    sections: list[dict[str, Any]],
    described: list[tuple[str, str]],
    left_out: list[str],
) -> str:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A report needs Jinja2 for its page. Install it with: "
            'pip install "keras-psp[plots]"'
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_psp.benchmarks", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("report.html.jinja").render(
        sections=sections, described=described, left_out=left_out, legend=LEGEND
    )


def _line(name: str, result: RunResult) -> dict[str, Any]:
    """The config of a run, and its numbers as they are."""
    return {
        "run": name,
        "system": describe_system(result),
        "experiment": result.experiment,
        "backend": result.backend,
        **result.config,
        **result.metrics,
        "task_0": result.accuracy_matrix[-1, 0],
        "weights_bytes": result.memory["weights"],
        "consolidation_bytes": result.memory["consolidation"],
        "train_seconds": sum(result.timings["train_seconds"]),
        "total_seconds": result.timings["total_seconds"],
    }


def _csv(lines: list[dict[str, Any]]) -> str:
    """A line for each run."""
    lines = [{_cell(k): _cell(v) for k, v in line.items()} for line in lines]
    fields = list(dict.fromkeys(field for line in lines for field in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Keeps a spreadsheet from computing a text that begins like a formula."""
    if not isinstance(value, str):
        return value
    value = _one_line(value)
    return f"'{value}" if value.lstrip().startswith(("=", "+", "-", "@")) else value
