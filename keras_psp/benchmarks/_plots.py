"""Plots of a group of runs."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_psp._core.figures import COLORS
from keras_psp._core.figures import draw_matrix
from keras_psp._core.figures import line_style
from keras_psp._core.figures import new_figure
from keras_psp.benchmarks._tables import SIZES
from keras_psp.benchmarks._tables import Entry
from keras_psp.benchmarks._tables import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^v<>PX*"


def draw(group: Group) -> dict[str, "Figure"]:
    """Returns the figures that a group has the runs for, by name.

    They are `retention`, `matrices`, `memory` if there is more than one system, and
    `sizes` if a system has been run in more than one size.
    """
    figures = {
        "retention": plot_retention(group.entries),
        "matrices": _plot_matrices(group.entries),
    }
    measured = [e for e in group.entries if e.results[0].memory["weights"]]
    if len(measured) > 1:
        figures["memory"] = _plot_memory(measured)
    sizes = _find_sizes(group.entries)
    if sizes:
        figures["sizes"] = _plot_sizes(*sizes)
    return figures


def plot_retention(entries: Sequence[Entry]) -> "Figure":
    figure = new_figure(10, 4.5 + 0.12 * len(entries))
    axes = figure.subplots(1, 2, sharey=True)
    visits, tasks = entries[0].matrix.shape
    for i, entry in enumerate(entries):
        matrices = [100 * result.accuracy_matrix for result in entry.results]
        # Lines of equal height lie beside one another where there is room.
        shift = 0.3 * ((i + 0.5) / len(entries) - 0.5) if visits <= 20 else 0
        visited = np.arange(1, visits + 1) + shift
        style = {
            **line_style(i),
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
            "markevery": 1 if visits <= 20 else (i % 5, visits // 10),
            "label": _literal(entry.name),
        }
        _plot_band(axes[0], visited, [matrix[:, 0] for matrix in matrices], style)
        means = [np.nanmean(matrix, axis=1) for matrix in matrices]
        _plot_band(axes[1], visited, means, style)
    label = "tasks trained" if visits == tasks else "visits to tasks"
    axes[0].set(title="Task 0", xlabel=label, ylabel="test accuracy (%)")
    axes[1].set(title="Mean of the tasks seen so far", xlabel=label)
    lowest = min(100 * np.nanmin(entry.matrix) for entry in entries)
    for axis in axes:
        axis.set_ylim(max(0, 10 * ((lowest - 3) // 10)), 101)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    _add_legend(figure, axes[0])
    return figure


def _plot_band(
    axis: "Axes", x: np.ndarray, curves: Sequence[np.ndarray], style: dict[str, Any]
) -> None:
    """Draws the mean of curves, and a standard deviation around it."""
    mean = np.mean(curves, axis=0)
    axis.plot(x, mean, **style)
    if len(curves) > 1:
        deviation = np.std(curves, axis=0, ddof=1)
        low, high = mean - deviation, mean + deviation
        axis.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _plot_matrices(entries: Sequence[Entry]) -> "Figure":
    columns = min(3, len(entries))
    rows = -(-len(entries) // columns)
    figure = new_figure(4.5 * columns + 1, 4.2 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    axes = axes[: len(entries)]
    for axis, entry in zip(axes, entries, strict=True):
        image = draw_matrix(axis, 100 * entry.matrix)
        axis.set_title(textwrap.fill(_literal(entry.name), 36), fontsize=10)
    figure.colorbar(image, ax=axes.tolist(), label="test accuracy (%)", shrink=0.8)
    return figure


def _plot_memory(entries: Sequence[Entry]) -> "Figure":
    figure = new_figure(8, 4.5 + 0.18 * len(entries))
    # After `new_figure()`, whose message says how to install Matplotlib.
    from matplotlib.ticker import LogLocator

    axis = figure.subplots()
    sizes = [entry.results[0].memory["weights"] / 1e6 for entry in entries]
    for i, (size, entry) in enumerate(zip(sizes, entries, strict=True)):
        axis.errorbar(
            size,
            100 * entry.mean("average_accuracy"),
            yerr=100 * entry.deviation,
            marker=MARKERS[i % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            linestyle="",
            markersize=8,
            markerfacecolor="none",  # What lies at one place is seen.
            markeredgewidth=2,
            capsize=3,
            label=_literal(entry.name),
        )
    axis.set_xscale("log")
    # Sizes that hardly differ are not to look as if they did.
    axis.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
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
        errors = [100 * line[size].deviation for size in sizes]
        style = {"marker": MARKERS[i % len(MARKERS)], "capsize": 3, **line_style(i)}
        axis.errorbar(sizes, averages, yerr=errors, label=_literal(name), **style)
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
