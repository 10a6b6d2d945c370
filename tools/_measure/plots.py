"""Draws the plots of the READMEs, `examples/*.png`, from `tools/results/`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from _measure import tables
from _measure.results import ROOT
from _measure.results import Result
from keras_psp._core.figures import line_style
from keras_psp._core.figures import new_figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    folder = {"type": Path, "default": ROOT / "examples", "metavar": "FOLDER"}
    parser.add_argument("--output", **folder, help="for the plots (examples)")


def run(args: argparse.Namespace) -> None:
    """Draws all plots."""
    for name, (draw, results) in PLOTS.items():
        path = args.output / f"{name}.png"
        draw(*map(tables.load, results)).savefig(path, dpi=120)
        print(path)


def draw_retention(result: Result) -> Figure:
    """Accuracy on the first task, and on all so far, after each task."""
    figure = new_figure(10, 4.5)
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set(title="Task 0", ylabel="test accuracy (%)")
    axes[1].set(title="Mean of the tasks seen so far")
    for i, row in enumerate(tables.summarize(result)):
        label = tables.name_system(row["config"]).replace("`", "")
        for axis, key in zip(axes, ("task_0", "average"), strict=True):
            means = [tables.mean(values) for values in row[key].values()]
            marker = "o" if len(means) <= 20 else None
            style = {**line_style(i), "marker": marker, "markersize": 4}
            axis.plot(range(1, len(means) + 1), means, **style, label=label)
    for axis in axes:
        axis.set(xlabel="tasks trained", ylim=(0, 101))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    options = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(handles, labels, **options)
    return figure


def draw_merge(sizes: Result, examples: Result) -> Figure:
    """Shares of the fine-tuned accuracy, over the tasks and over the examples."""
    figure = new_figure(10, 4)
    over_tasks, over_examples = figure.subplots(1, 2, sharey=True)
    rows = sizes["rows"]
    for i, units in enumerate(sorted({row["units"] for row in rows})):
        same = [row for row in rows if row["units"] == units]
        for system, line in (("superposed", "-"), ("RegMean", "--")):
            style = {"color": line_style(i)["color"], "linestyle": line, "marker": "o"}
            x, y = zip(*((row["tasks"], row[system]) for row in same), strict=True)
            over_tasks.plot(x, y, **style, label=f"{system}, {units} units")
    tuned = tables.mean(examples["rows"][0]["accuracy"])
    for i, (system, line) in enumerate((("superposed", "-"), ("RegMean", "--"))):
        names = (system, f"{system}, fast_rotation")
        same = [row for row in examples["rows"] if row["system"] in names]
        x = [row["examples"] for row in same]
        y = [100 * tables.mean(row["accuracy"]) / tuned for row in same]
        style = {**line_style(i), "linestyle": line, "marker": "o"}
        over_examples.plot(x, y, **style, label=f"{system}, 512 units, 8 tasks")
    over_tasks.set(xlabel="tasks", ylabel="of the fine-tuned networks' accuracy (%)")
    over_tasks.set_xscale("log", base=2)
    over_examples.set(xlabel="unlabelled examples of each task")
    over_examples.set_xscale("symlog", linthresh=100)
    for axis in (over_tasks, over_examples):
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", frameon=False)
    return figure


def draw_frontier(result: Result) -> Figure:
    """Shares of the fine-tuned accuracy over the memory, for each system."""
    figure, least = new_figure(10, 5.5), 97
    axis, number = figure.subplots(), 0
    for system, points in tables.read_frontier(result).items():
        # What is worse than something smaller of the same system is of no use.
        kept: list[tuple[float, float]] = []
        for point in points:
            share = tables.mean(point["share"])
            if point["memory"] < 2.6 and (not kept or share > kept[-1][1]):
                kept.append((point["memory"], share))
        if not any(share >= least for _, share in kept):
            continue
        x, y = zip(*kept, strict=True)
        style = {**line_style(number), "marker": "o", "markersize": 4}
        if system.startswith("superpose"):
            style |= {"linewidth": 2.5, "zorder": 3}
        axis.plot(x, y, **style, label=system)
        number += 1
    axis.set_xscale("log")
    axis.set_xticks(tables.MEMORIES, [f"{memory:g}" for memory in tables.MEMORIES])
    axis.minorticks_off()
    axis.set(xlim=(0.13, 2.6), ylim=(least, 100.1))
    axis.set(xlabel="memory, in float32 networks of one task")
    axis.set(ylabel="of the fine-tuned networks' accuracy (%)")
    config = result["config"]
    axis.set_title(f"{config['tasks']} fine-tuned networks ({config['network']})")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def draw_growth(result: Result) -> Figure:
    """Bytes and times over tasks and width, and bytes of a device over devices."""
    figure = new_figure(11, 6.5)
    panels = figure.subplots(2, 3)
    labels = {
        "seed": "contexts from a seed",
        "bits": "contexts of bits",
        "rank": "factors of rank 4",
        "own": "a kernel for each task",
    }
    titles = {
        ("tasks", "bytes"): "memory (bytes)",
        ("tasks", "forward"): "forward pass (µs an example)",
        ("tasks", "training"): "training step (µs an example)",
        ("width", "bytes"): "memory (bytes)",
        ("width", "training"): "training step (µs an example)",
        ("devices", "bytes"): "memory of a device (bytes)",
    }
    for axis, ((over, what), title) in zip(panels.flat, titles.items(), strict=True):
        for i, layer in enumerate(labels):
            rows = [
                row
                for row in result["rows"]
                if row["over"] == over and row["layer"] == layer
            ]
            keys = {"-": "bytes"}
            if what != "bytes":
                keys = {"-": f"{what}, one", "--": f"{what}, mixed"}
            for line, key in keys.items() if rows else ():
                x, y = [row[over] for row in rows], [row[key] for row in rows]
                color = line_style(i)["color"]
                axis.plot(x, y, linestyle=line, color=color, label=labels[layer])
                for row in rows:
                    fill = "white" if row.get("extrapolated") else color
                    style = {"markersize": 4, "markerfacecolor": fill, "color": color}
                    axis.plot(row[over], row[key], "o", **style)
        axis.set(xscale="log", yscale="log", title=title, xlabel=over)
        axis.grid(alpha=0.3)
        if over != "tasks":
            sizes = sorted({r[over] for r in result["rows"] if r["over"] == over})
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
    lines = panels[0, 0].get_lines()
    named = {
        line.get_label(): line for line in lines if line.get_label() in labels.values()
    }
    options = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(named.values(), named.keys(), **options)
    return figure


# How each is drawn, of which results.
PLOTS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "retention": (draw_retention, ("demo",)),
    "merge": (draw_merge, ("merge-sizes", "merge-mlp-8-tasks-jax")),
    "growth": (draw_growth, ("growth-jax",)),
    "frontier-8": (draw_frontier, ("frontier-mlp-8-tasks-jax",)),
    "frontier-32": (draw_frontier, ("frontier-mlp-32-tasks-jax",)),
    "frontier-resnet18": (draw_frontier, ("frontier-resnet18-8-tasks-jax",)),
}
