"""Plots of a group of runs."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_psp._core.figures import COLORS
from keras_psp._core.figures import line_style
from keras_psp._core.figures import new_figure
from keras_psp.benchmarks._tables import SIZES
from keras_psp.benchmarks._tables import Entry
from keras_psp.benchmarks._tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(group: Group) -> dict[str, "Figure"]:
    """Returns the figures that a group has the runs for, by name.

    They are `retention`, `matrices`, `memory` if there is more than one system, and
    `sizes` if a system has been run in more than one size.
    """
    figures = {
        "retention": _plot_retention(group.entries),
        "matrices": _plot_matrices(group.entries),
    }
    measured = [e for e in group.entries if e.results[0].memory["weights"]]
    if len(measured) > 1:
        figures["memory"] = _plot_memory(measured)
    sizes = _find_sizes(group.entries)
    if sizes:
        figures["sizes"] = _plot_sizes(*sizes)
    return figures


def _plot_retention(entries: Sequence[Entry]) -> "Figure":
    figure = new_figure(10, 4.5 + 0.12 * len(entries))
    axes = figure.subplots(1, 2, sharey=True)
    for i, entry in enumerate(entries):
        matrix = 100 * entry.matrix
        style = {
            **line_style(i),
            "marker": "o" if len(matrix) <= 20 else None,
            "markersize": 4,
            "label": _literal(entry.name),
        }
        trained = np.arange(1, len(matrix) + 1)
        axes[0].plot(trained, matrix[:, 0], **style)
        axes[1].plot(trained, np.nanmean(matrix, axis=1), **style)
    label = "tasks trained" if len(matrix) == matrix.shape[1] else "visits to tasks"
    axes[0].set(title="Task 0", xlabel=label, ylabel="test accuracy (%)")
    axes[1].set(title="Mean of the tasks seen so far", xlabel=label)
    for axis in axes:
        axis.set_ylim(0, 101)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    _add_legend(figure, axes[0])
    return figure


def _plot_matrices(entries: Sequence[Entry]) -> "Figure":
    columns = min(3, len(entries))
    rows = -(-len(entries) // columns)
    figure = new_figure(4.5 * columns + 1, 4.2 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    axes = axes[: len(entries)]
    for axis, entry in zip(axes, entries, strict=True):
        matrix = 100 * entry.matrix
        trained = "task" if len(matrix) == matrix.shape[1] else "visit"
        # cividis looks the same to people who are colour-blind.
        image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        axis.set_title(textwrap.fill(_literal(entry.name), 36), fontsize=10)
        axis.set(xlabel="accuracy on task", ylabel=f"after training {trained}")
        for locator in (axis.xaxis, axis.yaxis):
            locator.get_major_locator().set_params(integer=True)
        if len(matrix) > 12:
            continue  # Numbers would be too small to read.
        for i, j in np.argwhere(~np.isnan(matrix)):
            color = "white" if matrix[i, j] < 50 else "black"
            text = f"{matrix[i, j]:.0f}"
            axis.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image, ax=axes.tolist(), label="test accuracy (%)", shrink=0.8)
    return figure


def _plot_memory(entries: Sequence[Entry]) -> "Figure":
    figure = new_figure(8, 4.5 + 0.18 * len(entries))
    # After `new_figure()`, whose message says how to install Matplotlib.
    from matplotlib.ticker import LogLocator

    axis = figure.subplots()
    markers = "osD^v<>PX*"
    for i, entry in enumerate(entries):
        axis.plot(
            entry.results[0].memory["weights"] / 1e6,
            100 * entry.mean("average_accuracy"),
            marker=markers[i % len(markers)],
            color=COLORS[i % len(COLORS)],
            linestyle="",
            markersize=8,
            label=_literal(entry.name),
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set(
        title="Accuracy against memory",
        xlabel="weights needed for all tasks (MB)",
        ylabel="average test accuracy (%)",
    )
    axis.grid(alpha=0.3, which="both")
    _add_legend(figure, axis)
    return figure


def _find_sizes(
    entries: Sequence[Entry],
) -> tuple[str, dict[str, dict[float, Entry]]] | None:
    """Returns `(field, lines)`: the entries by size, for systems in several sizes."""
    for field in SIZES:
        lines: dict[str, dict[float, Entry]] = {}
        for entry in entries:
            size = entry.results[0].config.get(field)
            if size is None:
                continue
            name = entry.name.replace(f", {field} {size}", "")
            lines.setdefault(name, {})[size] = entry
        lines = {name: line for name, line in lines.items() if len(line) > 1}
        if lines:
            return field, lines
    return None


def _plot_sizes(field: str, lines: dict[str, dict[float, Entry]]) -> "Figure":
    figure = new_figure(8, 4.5 + 0.12 * len(lines))
    axis = figure.subplots()
    for i, (name, line) in enumerate(lines.items()):
        sizes = sorted(line)
        averages = [100 * line[size].mean("average_accuracy") for size in sizes]
        axis.plot(sizes, averages, marker="o", label=_literal(name), **line_style(i))
    sizes = sorted({size for line in lines.values() for size in line})
    if sizes[0] > 0:
        axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axis.minorticks_off()
    axis.set(
        title=f"Accuracy against {field}",
        xlabel=field,
        ylabel="average test accuracy (%)",
    )
    axis.grid(alpha=0.3)
    _add_legend(figure, axis)
    return figure


def _literal(name: str) -> str:
    """Keeps Matplotlib from reading dollar signs as mathematics."""
    return name.replace("$", r"\$")


def _add_legend(figure: "Figure", axis: "Axes") -> None:
    """Names the lines below the axes, in two columns that wrap long names."""
    handles, labels = axis.get_legend_handles_labels()
    letters = round(4.5 * figure.get_figwidth())
    figure.legend(
        handles,
        [textwrap.fill(label, letters) for label in labels],
        loc="outside lower center",
        ncols=2,
        frameon=False,
    )
