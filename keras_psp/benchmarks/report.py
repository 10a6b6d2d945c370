"""Reports: tables and plots of one run or many, to read and to open in a browser."""

import base64
import csv
import dataclasses
import io
import os
from collections.abc import Iterable
from pathlib import Path

from keras_psp._core.files import open_atomically
from keras_psp.benchmarks._experiments import EXPERIMENTS
from keras_psp.benchmarks._plots import draw
from keras_psp.benchmarks._tables import describe_system
from keras_psp.benchmarks._tables import group
from keras_psp.benchmarks.result import FILE_NAME
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.search import FILE_NAME as SEARCH_NAME
from keras_psp.benchmarks.search import Search

LEGEND = (
    "Average: mean accuracy over all tasks after the last one; in bold the best of the "
    "systems that learn task after task in one network. Just trained: mean accuracy on "
    "each task right after its training. Forgetting: how far tasks fell from their "
    "best. Backward transfer: what later tasks did to earlier ones. Forward transfer: "
    "how much better than guessing a task is before its training. Weights: of all that "
    "it takes to answer for every task; beside: what consolidation keeps while "
    "training. Context bits/task: what the contexts of one more task take. Drift: the "
    "largest element of |C C^T - I| of any layer's contexts C, if they are learned. "
    "Numbers with ± are means and standard deviations over runs with different seeds."
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
        tables: By title, a dictionary of strings for each row; the best average is in
            `**`. Those of searches come first.
        paths: The files: `report.html`, a page with everything in it, `report.md`,
            `runs.csv`, and the plots.
        left_out: Why a run is not in it, for each that is not.
    """

    tables: dict[str, list[dict[str, str]]]
    paths: list[Path]
    left_out: list[str]


def report(
    runs: Iterable[str | os.PathLike], output: str | os.PathLike | None = None
) -> Report:
    """Writes tables and plots of some runs, those with equal settings in one table.

    Runs that a search for hyperparameters has made are in one of its best trials too.

    Args:
        runs: Folders of runs, folders that hold such folders, or `result.json` files.
        output: Folder to write to. Defaults to the innermost that holds all of `runs`.

    Returns:
        A `Report`. Runs whose result is damaged or not there yet are left out of it.

    Raises:
        FileNotFoundError: There is nothing there, or no result in it.
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
    given = [Path(os.path.abspath(run)) for run in runs]
    given = [path.parent if path.name == FILE_NAME else path for path in given]
    if not given:
        raise ValueError("A report needs at least one run.")
    if len(set(given)) < len(given):
        raise ValueError(f"Each run may be named once. Received: {[*map(str, given)]}")
    folders = list(dict.fromkeys(found for path in given for found in _find(path)))
    loaded, left_out = [], []
    for folder in folders:
        try:
            loaded.append((folder, RunResult.load(folder)))
        except (FileNotFoundError, ValueError) as error:
            left_out.append(str(error))
    if not loaded:
        raise FileNotFoundError(f"There is no result there. {' '.join(left_out)}")
    published = {name: config.published for name, config in EXPERIMENTS.items()}
    groups = group(loaded, published)
    output = Path(os.path.commonpath(given)) if output is None else Path(output)
    output.mkdir(parents=True, exist_ok=True)

    pictures = {}
    for one in groups:
        for name, figure in draw(one).items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            pictures[one.slug, name] = buffer.getvalue()
    names = {folder: _name(folder, output) for folder, _ in loaded}
    sections = _searches(loaded, output, left_out)
    sections += [
        {
            "title": one.title,
            "note": one.note,
            "rows": one.rows(),
            "pictures": [
                (CAPTIONS[name], f"{slug}-{name}.png", data)
                for (slug, name), data in pictures.items()
                if slug == one.slug
            ],
        }
        for one in groups
    ]
    described = [(names[folder], _describe_run(result)) for folder, result in loaded]
    files = {
        "report.html": _page(sections, described, left_out),
        "report.md": _markdown(sections, described, left_out),
        "runs.csv": _csv((names[folder], result) for folder, result in loaded),
        **{name: data for section in sections for _, name, data in section["pictures"]},
    }
    for name, content in files.items():
        with open_atomically(output / name) as file:
            file.write(content if isinstance(content, bytes) else content.encode())
    tables = {section["title"]: section["rows"] for section in sections}
    return Report(tables, [output / name for name in files], left_out)


def _find(path):
    """The folders of runs in a folder; itself, if it is one or holds none."""
    if not path.exists():
        raise FileNotFoundError(f"There is no result there. Received: {path}")
    if (path / FILE_NAME).exists():
        return [path]
    return sorted(found.parent for found in path.rglob(FILE_NAME)) or [path]


def _searches(loaded, output, left_out):
    """A section for each search that some of the runs are of: its best trials."""
    found = {}
    for folder, result in loaded:
        if (folder.parent / SEARCH_NAME).exists():
            found.setdefault(folder.parent, []).append(result)
    sections = []
    for folder, results in found.items():
        try:
            search = Search.load(folder)
        except ValueError as error:
            left_out.append(str(error))
            continue
        sections.append(
            {
                "title": f"Search {_name(folder, output)}: best of {len(results)} runs",
                "note": f"By KerasTuner ({search.tuner}), over "
                f"{search.describe_space()}. It is the best on the test examples, and "
                "so looks a little better than it is: measure it with another seed.",
                "rows": search.rows(results),
                "pictures": [],
            }
        )
    return sections


def _name(folder, output):
    return folder.name if folder == output else os.path.relpath(folder, output)


def _describe_run(result):
    config = ", ".join(f"{key}={value}" for key, value in result.config.items())
    versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
    device = result.device
    return (
        f"{result.experiment}: {config}. {versions}. {device['name']} of "
        f"{device['platform']}, {device['cpus']} CPUs; "
        f"jit_compile={result.jit_compile}; "
        f"{result.timings['total_seconds']:.0f} s in all."
    )


def _markdown(sections, described, left_out):
    lines = ["# Report", ""]
    for section in sections:
        rows = section["rows"]
        lines += [f"## {section['title']}", "", section["note"], ""]
        lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
        lines += [""]
        for caption, name, _ in section["pictures"]:
            lines += [f"![{caption}]({name})", ""]
    lines += [LEGEND, "", "## Runs", ""]
    lines += [f"- **{name}**: {text}" for name, text in described]
    lines += [f"- Left out: {reason}" for reason in left_out]
    return "\n".join(lines) + "\n"


def _page(sections, described, left_out):
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


def _csv(runs):
    """A line for each run, with all numbers as they are."""
    lines = []
    for name, result in runs:
        lines.append(
            {
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
        )
    fields = list(dict.fromkeys(field for line in lines for field in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
