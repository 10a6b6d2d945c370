"""Reports: a table and plots of one run or many."""

import io
import os
from pathlib import Path

import numpy as np

from keras_psp.benchmarks.files import open_atomically
from keras_psp.benchmarks.result import RunResult


def report(runs, output=None):
    """Writes `report.md`, `retention.png` and `matrices.png` of some runs.

    Args:
        runs: Folders of runs, or their `result.json` files.
        output: Folder to write to. Defaults to the innermost that holds all the runs.

    Returns:
        `(rows, paths)`: the table, a dictionary of strings for each run, and the paths
        of the three files.

    Raises:
        FileNotFoundError: A run has no result.
        ValueError: No runs, a damaged result, or one run named twice.
        OSError: The folder cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_psp import benchmarks
    >>> folder = tempfile.mkdtemp()
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20, units=32)
    >>> result = benchmarks.run(config, output=folder, overwrite=True)
    >>> rows, paths = benchmarks.report([folder])
    >>> [path.name for path in paths]
    ['report.md', 'retention.png', 'matrices.png']
    """
    folders = [Path(os.path.abspath(run)) for run in runs]
    folders = [path if path.is_dir() else path.parent for path in folders]
    if not folders:
        raise ValueError("A report needs at least one run.")
    if len(set(folders)) < len(folders):
        raise ValueError(f"Each run may be named once. Received: {[*map(str, runs)]}")
    results = [RunResult.load(run) for run in runs]
    common = Path(os.path.commonpath(folders))
    output = common if output is None else Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names = [
        folder.name if folder == common else str(folder.relative_to(common))
        for folder in folders
    ]
    rows = [_row(name, result) for name, result in zip(names, results, strict=True)]
    plots = {
        "retention.png": _plot_retention(names, results),
        "matrices.png": _plot_matrices(names, results),
    }
    with open_atomically(output / "report.md") as file:
        file.write(_markdown(rows, results).encode())
    for name, figure in plots.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        with open_atomically(output / name) as file:
            file.write(buffer.getvalue())
    return rows, [output / name for name in ("report.md", *plots)]


def _row(name, result):
    matrix = result.accuracy_matrix
    # The first task's time includes compilation.
    seconds = result.timings["train_seconds"][1:] or result.timings["train_seconds"]
    drift = result.contexts["orthogonality_drift"]
    return {
        "run": name,
        "context": _describe_context(result),
        "tasks": str(len(matrix)),
        "average %": f"{100 * result.average_accuracy:.1f}",
        "task 0 %": f"{100 * matrix[-1, 0]:.1f}",
        "just trained %": f"{100 * np.diagonal(matrix).mean():.1f}",
        "forgetting %": f"{100 * result.forgetting:.1f}",
        "backward transfer %": f"{100 * result.backward_transfer:.1f}",
        "bits/task": str(result.contexts["bits_per_task"]),
        "drift": "—" if drift is None else f"{drift:.1e}",
        "backend": result.backend,
        "ms/step": f"{1000 * np.median(seconds) / result.config['steps']:.2f}",
    }


def _describe_context(result):
    config = result.config
    parts = [config["context"]]
    parts += ["learned"] if config["learnable"] else []
    parts += ["complex network"] if config.get("complex_valued") else []
    parts += [f"{config[k]} {k}" for k in ("head", "norm") if k in config]
    parts += ["separate networks"] if config["separate"] else []
    return ", ".join(parts)


def _markdown(rows, results):
    lines = ["# Report", ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    lines += [
        "",
        "Average: mean accuracy over all tasks after the last one. Just trained: mean "
        "accuracy on each task right after its training. Bits/task: what the contexts "
        "of one more task take. Drift: the largest element of |C C^T - I| of any "
        "layer's contexts C, if they are learned.",
        "",
        "![Accuracy over the course of the tasks](retention.png)",
        "",
        "![Accuracy on each task after each task](matrices.png)",
        "",
    ]
    for row, result in zip(rows, results, strict=True):
        config = ", ".join(f"{key}={value}" for key, value in result.config.items())
        versions = ", ".join(f"{k} {v}" for k, v in result.versions.items())
        device = result.device
        lines += [
            f"- **{row['run']}**: {result.experiment}: {config}. {versions}. "
            f"{device['name']} of {device['platform']}, {device['cpus']} CPUs; "
            f"jit_compile={result.jit_compile}; "
            f"{result.timings['total_seconds']:.0f} s in all.",
        ]
    return "\n".join(lines) + "\n"


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A report needs matplotlib for its plots. Install it with: "
            'pip install "keras-psp[plots]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


# Okabe and Ito's colours, which the colour-blind can tell apart; then line styles.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")


def _plot_retention(names, results):
    figure = _figure(10, 4.5 + 0.12 * len(results))
    axes = figure.subplots(1, 2, sharey=True)
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        matrix = 100 * result.accuracy_matrix
        style = {
            "color": _COLORS[i % len(_COLORS)],
            "linestyle": _STYLES[i // len(_COLORS) % len(_STYLES)],
            "marker": "o" if len(matrix) <= 20 else None,
            "markersize": 4,
            "label": f"{name} ({_describe_context(result)})",
        }
        trained = np.arange(1, len(matrix) + 1)
        axes[0].plot(trained, matrix[:, 0], **style)
        axes[1].plot(trained, np.nanmean(matrix, axis=1), **style)
    axes[0].set(title="Task 0", xlabel="tasks trained", ylabel="test accuracy (%)")
    axes[1].set(title="Mean of the tasks seen so far", xlabel="tasks trained")
    for axis in axes:
        axis.set_ylim(0, 101)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _plot_matrices(names, results):
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = _figure(4.5 * columns + 1, 4.2 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    axes = axes[: len(results)]
    for axis, name, result in zip(axes, names, results, strict=True):
        matrix = 100 * result.accuracy_matrix
        # cividis looks the same to the colour-blind.
        image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=100)
        axis.set(title=name, xlabel="accuracy on task", ylabel="after training task")
        for locator in (axis.xaxis, axis.yaxis):
            locator.get_major_locator().set_params(integer=True)
        if len(matrix) > 12:
            continue  # Numbers would be too small to read.
        for i, j in np.argwhere(np.tril(np.ones_like(matrix))):
            color = "white" if matrix[i, j] < 50 else "black"
            text = f"{matrix[i, j]:.0f}"
            axis.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes.tolist(), label="test accuracy (%)", shrink=0.8)
    return figure
