"""Plots of what the diagnostics find."""

import numpy as np

from keras_psp._core.figures import COLORS
from keras_psp._core.figures import line_style
from keras_psp._core.figures import new_figure

MAX_MATRICES = 6  # Layers whose matrices can be told apart in a figure.
MAX_BARS = 24
MAX_LINES = 12
GREY = "#999999"
LABELS = {
    "kernels": "superposed kernels",
    "base_kernels": "base kernels",
    "core": "cores",
    "low_rank": "low rank",
    "contexts": "contexts",
    "task_state": "each task's own",
    "shared": "shared by all tasks",
}


def save(figure, path):
    """Writes a figure, if there is a path to write it to, and returns it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def draw_frontier(rows):
    """Returns a figure of the rows of a `Frontier`: a line for each system."""
    figure = new_figure(7.5, 4.5)
    axis = figure.subplots()
    what = "evaluate" if "evaluate" in rows[0] else "error"
    for i, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        same = [row for row in rows if row["system"] == system]
        same = sorted(same, key=lambda row: row["memory"])
        x, y = ([row[name] for row in same] for name in ("memory", what))
        style = {**line_style(i), "marker": "o", "markersize": 4}
        axis.plot(x, y, **style, linewidth=1.5 if i else 2.5, label=system)
    axis.set(xscale="log", xlabel="memory, in float32 networks of one model")
    axis.set(ylabel="evaluate()")
    if what == "error":
        axis.set(yscale="log", ylabel="squared error, as a share of the variance")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    return figure


def draw_interference(layers):
    """Returns a figure of a sequence of `LayerInterference`."""
    if len(layers) > MAX_MATRICES:
        return _draw_ranges(layers)
    return _draw_matrices(layers)


def _draw_matrices(layers):
    """Each layer's energies, above what they add up to for every task."""
    figure = new_figure(2.6 * len(layers) + 1.6, 5.2)
    from matplotlib.colors import LogNorm  # Once `new_figure()` has said if it lacks.

    axes = figure.subplots(2, len(layers), squeeze=False, height_ratios=(3, 2))
    least = 0.1 / max(layer.width for layer in layers)
    most = 2 * max(1.0, *(layer.interference.max() for layer in layers))
    tasks = np.arange(len(layers[0].energies))
    for layer, (top, bottom) in zip(layers, axes.T, strict=True):
        # cividis looks the same to the colour-blind; a logarithm knows no zero.
        image = top.imshow(
            np.maximum(layer.energies, least),
            cmap="cividis",
            norm=LogNorm(least, 1.0),
            aspect="auto",
        )
        top.set(title=f"{_shorten(layer.name)}, M = {layer.width}")
        top.set_xlabel("stored by task")
        bottom.bar(tasks, layer.signal, color=GREY, label="signal: its own")
        bottom.bar(
            tasks,
            layer.interference,
            width=0.5,
            color=COLORS[1],
            label="interference: all the others'",
        )
        bottom.axhline(
            layer.predicted, color=COLORS[0], linestyle="--", label="(K − 1) / M"
        )
        bottom.set(xlabel="task", yscale="log", ylim=(least, most))
        bottom.grid(alpha=0.3, axis="y")
        for axis in (top.xaxis, top.yaxis, bottom.xaxis):
            axis.get_major_locator().set_params(integer=True)
    for top, bottom in axes[:, 1:].T:
        top.set_yticklabels([])
        bottom.set_yticklabels([])
    axes[0, 0].set_ylabel("read by task")
    axes[1, 0].set_ylabel("energy read")
    figure.colorbar(image, ax=axes[0].tolist(), label="energy read (1: all)")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_ranges(layers):
    """The mean and the range over the tasks, layer by layer."""
    figure = new_figure(max(7.0, 2.0 + 0.32 * len(layers)), 5.2)
    axis = figure.subplots()
    places = np.arange(len(layers))
    for attribute, label, color, marker in (
        ("signal", "signal: a task's own", GREY, "s"),
        ("interference", "interference: all the others'", COLORS[1], "o"),
    ):
        values = np.array([getattr(layer, attribute) for layer in layers])
        middle = values.mean(axis=1)
        axis.errorbar(
            places,
            middle,
            yerr=(middle - values.min(axis=1), values.max(axis=1) - middle),
            color=color,
            marker=marker,
            markersize=5,
            linestyle="",
            label=label,
        )
    axis.plot(
        places,
        [layer.predicted for layer in layers],
        color=COLORS[0],
        marker="_",
        markersize=12,
        markeredgewidth=2,
        linestyle="",
        label="(K − 1) / M",
    )
    axis.set(
        title="Energy that a task reads: mean and range over the tasks",
        yscale="log",
        ylabel="energy read (1: all)",
    )
    axis.set_xticks(places, [_shorten(layer.name, 32) for layer in layers], rotation=90)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_memory(memory):
    """Returns a figure of a `Memory`."""
    layers = memory.layers
    if len(layers) > MAX_BARS:
        least = sorted(layer.total for layer in layers)[-MAX_BARS]
        layers = [layer for layer in layers if layer.total >= least][:MAX_BARS]
    figure = new_figure(10, max(3.6, 1.8 + 0.2 * len(layers)))
    whole, each = figure.subplots(1, 2, width_ratios=(2, 3))
    size, unit = _unit(max(memory.total, memory.separate))
    small, small_unit = _unit(max(layer.total for layer in layers))
    places, start, starts = np.arange(len(layers)), 0.0, np.zeros(len(layers))
    for color, (part, count) in zip(COLORS, memory.parts.items(), strict=True):
        if not count:
            continue
        whole.bar(0, count / size, bottom=start, color=color, label=LABELS[part])
        start += count / size
        counts = np.array([layer.parts[part] for layer in layers]) / small
        each.barh(places, counts, left=starts, color=color)
        starts += counts
    whole.bar(1, memory.separate / size, color=GREY, label="a model for each task")
    for place, count in enumerate((memory.total, memory.separate)):
        text = f"{count / size:.3g} {unit}"
        whole.text(place, count / size, text, ha="center", va="bottom")
    whole.margins(y=0.1)
    whole.set_xticks((0, 1), ("this model", f"{memory.num_tasks} models"))
    whole.set(
        title=f"{memory.num_tasks} models take {memory.ratio:.1f} times as much",
        ylabel=f"weights ({unit})",
    )
    whole.grid(alpha=0.3, axis="y")
    each.set_yticks(places, [_shorten(layer.name, 32) for layer in layers], fontsize=8)
    each.set_ylim(len(layers) - 0.4, -0.6)
    each.set_xlim(0, 1.05 * starts.max())
    left = f" (the {MAX_BARS} largest)" if len(layers) < len(memory.layers) else ""
    each.set(xlabel=f"weights ({small_unit})", title=f"Layer by layer{left}")
    each.grid(alpha=0.3, axis="x")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_capacity(capacity):
    """Returns a figure of a `Capacity`."""
    layers = {(layer.width, layer.limit): layer for layer in capacity.layers}.values()
    # The narrowest, if there are many: they decide.
    layers = sorted(layers, key=lambda layer: -layer.width)[-MAX_LINES:]
    figure = new_figure(7, 4.6)
    axis = figure.subplots()
    least = min(1e-3, capacity.tolerance or 1.0)
    tolerances = np.geomspace(least, max(1.0, capacity.tolerance), 400)
    for i, layer in enumerate(layers):
        style, number = line_style(i), layer.num_tasks(capacity.tolerance)
        numbers = [layer.num_tasks(tolerance) for tolerance in tolerances]
        label = f"M = {layer.width}: K = {number}"
        axis.plot(tolerances, numbers, drawstyle="steps-post", label=label, **style)
        axis.plot(capacity.tolerance, number, marker="o", color=style["color"])
    axis.axvline(capacity.tolerance, color=GREY, linestyle="--", zorder=0)
    number = capacity.num_tasks
    axis.set(
        title=f"Room for {number} task{'s' if number > 1 else ''} "
        f"at a tolerance of {capacity.tolerance:g}",
        xlabel="tolerance: interference (K − 1) / M against a signal of 1",
        ylabel="number of tasks K",
        xscale="log",
        yscale="log",
    )
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _shorten(name, length=16):
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[1 - length // 2 :]}"


def _unit(count):
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return 10**power, unit
    return 1, "B"
