"""Groups of runs that can be compared: a table for each, with a row for each system."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np

from keras_psp.benchmarks._parts import PARTS
from keras_psp.benchmarks._parts import is_added
from keras_psp.benchmarks.protocols import named_settings
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.suites import EXPERIMENTS

UNKNOWN = "—"
# The fields that define a system. Sizes and training options are named only where they
# differ. All other fields must be equal for runs to be compared.
SYSTEM = (
    *("context", "learnable", "complex_valued", "assignment", "context_over"),
    *("head", "norm", "rank", "separate", "joint", "consolidation", "strength"),
    *("model", "training"),
)
SIZES = ("units", "depth", "width")
# What is measured after the last task; results of release 0.1 lack these fields.
AFTERWARDS = ("part_bits", "guessed")
TOLD = (
    *(*SIZES, "optimizer", "learning_rate", "task_learning_rate", "schedule"),
    *AFTERWARDS,
)
# Names of other fields' settings.
NAMED = ("recipe", "protocol")

_AFTERWARDS = {
    "parts in few bits %": ("in_few_bits",),
    "task guessed by image %": ("guessed", "by_image"),
    "task guessed by 32 %": ("guessed", "by_batch"),
}
CONSOLIDATION_NAMES = {
    "ewc": "EWC",
    "per_task_ewc": "EWC, anchored to each task",
    "online_ewc": "EWC, fading",
    "gram": "Gram",
    "si": "SI",
    "freeze": "frozen after the first task",
}
ASSIGNMENT_NAMES = {
    "step": "a context every step",
    "random": "random contexts",
    "mixture": "mixed contexts",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """The runs of one system, which differ in their seeds alone.

    Attributes:
        name: What it is called.
        results: The runs.
    """

    name: str
    results: Sequence[RunResult]

    @property
    def own_parts(self) -> list[str]:
        """What the runs name that is not built in, quoted."""
        first = self.results[0]
        known = EXPERIMENTS.get(first.experiment)
        defaults = {} if known is None else {f.name: f.default for f in fields(known)}
        named = {kind: first.config.get(kind) for kind in PARTS}
        own = [
            name
            for kind, name in named.items()
            if name is not None
            and name != defaults.get(kind)
            and (name not in PARTS[kind] or is_added(kind, name))
        ]
        return [f"{x!r}" for x in ([first.experiment] if known is None else []) + own]

    @property
    def is_bound(self) -> bool:
        """Whether it is an upper bound, which does not learn task after task."""
        config = self.results[0].config
        return bool(config.get("separate") or config.get("joint"))

    @property
    def matrix(self) -> np.ndarray:
        """The mean of the accuracy matrices."""
        return np.mean([result.accuracy_matrix for result in self.results], axis=0)

    @property
    def deviation(self) -> float:
        """The standard deviation of the average accuracy, 0 for one run."""
        values = self._values("average_accuracy")
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    @property
    def command(self) -> str:
        """The command that makes these runs, without the folder for them."""
        first = self.results[0]
        seeds = sorted(result.seed for result in self.results)
        command = describe_command(first.experiment, first.config, seeds)
        return f"{command} --backend {first.backend}"

    def mean(self, metric: str) -> float:
        """The mean of one of the runs' metrics, NaN where it is not known."""
        return float(np.mean(self._values(metric)))

    def describe(self, metric: str) -> str:
        """The mean in percent, and the standard deviation if there is more than one."""
        return in_percent(self._values(metric))

    def describe_afterwards(self, *path: str) -> str:
        """The mean accuracy over the tasks at this path of `RunResult.afterwards`."""
        values = []
        for result in self.results:
            found: Any = result.afterwards
            for name in path:
                found = found.get(name, {})
            values.append(np.mean(found["accuracy"]) if found else np.nan)
        return in_percent(values)

    def _values(self, metric: str) -> np.ndarray:
        return np.array(
            [result.metrics[metric] for result in self.results], dtype=float
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs that can be compared.

    Attributes:
        title: What they have in common, in a few words.
        slug: The same for the name of a file.
        note: What differs from the published setting.
        entries: The systems, those that keep most first.
    """

    title: str
    slug: str
    note: str
    entries: Sequence[Entry]

    def rows(self) -> list[dict[str, str]]:
        """The table; `**` marks the best average of a system that is no upper bound."""
        rows = [_row(entry) for entry in self.entries]
        for name, path in _AFTERWARDS.items():
            cells = [entry.describe_afterwards(*path) for entry in self.entries]
            if any(cell != UNKNOWN for cell in cells):
                for row, cell in zip(rows, cells, strict=True):
                    row[name] = cell
        others = [i for i, entry in enumerate(self.entries) if not entry.is_bound]
        if others and len(rows) > 1:
            best = rows[others[0]]
            best["average %"] = f"**{best['average %']}**"
        return rows

    def commands(self) -> list[str]:
        """The commands that make the runs and the report again."""
        made = [f"{entry.command} --output runs/{self.slug}" for entry in self.entries]
        own = {name: None for entry in self.entries for name in entry.own_parts}
        note = [f"# Add --parts and the file that registers {', '.join(own)}"]
        return [*(note if own else ()), *made, f"keras-psp report runs/{self.slug}"]


def describe_system(result: RunResult) -> str:
    """Returns the name of a run's system in words.

    Example:

    >>> from keras_psp import benchmarks
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=5, units=8)
    >>> benchmarks.describe_system(benchmarks.run(config))
    'superposed (binary)'
    """
    config = {name: result.config.get(name) for name in SYSTEM}
    if config["context"] == "identity":
        parts = ["standard"]
        if config["head"] == "multi":
            parts.append("a head for each task")
    else:
        learned = ", learned" if config["learnable"] else ""
        kind = "complex-valued" if config["complex_valued"] else "superposed"
        parts = [f"{kind} ({config['context']}{learned})"]
        if config["head"] not in (None, "superposed"):
            parts.append(f"{config['head']} head")
    if config["assignment"] in ASSIGNMENT_NAMES:
        parts.append(ASSIGNMENT_NAMES[config["assignment"]])
    if config["context_over"] == "channels" and config["context"] != "identity":
        parts.append("over channels")
    if config["norm"] not in (None, "task"):
        parts.append(f"{config['norm']} norms")
    if config["rank"]:
        parts.append(f"rank {config['rank']} for each task")
    if config["model"] not in (None, "mlp", "resnet18"):
        parts.append(config["model"])
    if config["training"] not in (None, "fit"):
        parts.append(f"trained by {config['training']}")
    if config["separate"]:
        parts.append("a network for each task")
    if config["joint"]:
        parts.append("all tasks at once")
    name = ", ".join(parts)
    consolidation = config["consolidation"]
    if consolidation not in (None, "none"):
        strength = f" ({config['strength']:g})" if config["strength"] else ""
        name += f" + {CONSOLIDATION_NAMES.get(consolidation, consolidation)}{strength}"
    return name


def describe_command(
    experiment: str, config: dict[str, Any], seeds: Sequence[int]
) -> str:
    """Returns the command that makes runs of a config with these seeds.

    It names the options that differ from the experiment's defaults, or from what a
    recipe or a protocol among them sets. Those of an experiment of your own, which is
    not registered, are all named.
    """
    words = ["keras-psp", "run", experiment]
    known = EXPERIMENTS.get(experiment)
    defaults = {} if known is None else {f.name: f.default for f in fields(known)}
    settings = named_settings(config.get("recipe"), config.get("protocol"))
    for name, value in config.items():
        is_default = value == defaults.get(name) == settings.get(name, value)
        if name == "seed" or is_default or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        words += [] if value is True else [str(value)]
    if len(seeds) > 1:
        words += ["--seeds", ",".join(map(str, seeds))]
    elif seeds != [0]:
        words += ["--seed", str(seeds[0])]
    return shlex.join(words)


def group(runs: Sequence[tuple[PathLike, RunResult]], published: dict) -> list[Group]:
    """Puts runs that can be compared into one group.

    Args:
        runs: Pairs of a path, for error messages, and a result.
        published: The published settings, fields and values, by experiment.

    Raises:
        ValueError: Two runs differ in nothing.
    """
    settings: dict[tuple, list[tuple[PathLike, RunResult]]] = {}
    for path, result in runs:
        shape = result.accuracy_matrix.shape
        key = (result.experiment, shape, *sorted(_setting(result).items()))
        settings.setdefault(key, []).append((path, result))
    firsts = [members[0][1] for members in settings.values()]
    titles = _number([_title(first, firsts) for first in firsts], " ({})")
    slugs = _number([_slug(first) for first in firsts], "-{}")
    return [
        Group(
            title,
            slug,
            _compare([result for _, result in members], published),
            _entries(members),
        )
        for title, slug, members in zip(titles, slugs, settings.values(), strict=True)
    ]


def _slug(result: RunResult) -> str:
    """A name for files: whatever a result says, it names no folder."""
    text = f"{result.experiment}-{result.config['source']}"
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower()[:100] or "runs"


def _number(names: list[str], suffix: str) -> list[str]:
    """Makes names different by a number behind those that are taken."""
    found: list[str] = []
    for name in names:
        free, number = name, 1
        while free in found:
            number += 1
            free = name + suffix.format(number)
        found.append(free)
    return found


def _setting(result: RunResult) -> dict[str, Any]:
    """The fields in which runs must be equal to be compared."""
    others = (*SYSTEM, *TOLD, *NAMED, "seed")
    return {name: x for name, x in result.config.items() if name not in others}


def _entries(members: list[tuple[PathLike, RunResult]]) -> list[Entry]:
    differing = [
        name
        for name in (*TOLD, "backend")
        if len({_field(result, name) for _, result in members}) > 1
    ]
    systems: dict[str, dict[int, tuple[PathLike, RunResult]]] = {}
    for path, result in members:
        values = [(name, _field(result, name)) for name in differing]
        told = [each for each in values if each[1] or each[0] not in AFTERWARDS]
        name = ", ".join(
            [
                describe_system(result),
                *(f"{_words(name)} {value}" for name, value in told),
            ]
        )
        seeds = systems.setdefault(name, {})
        if result.seed in seeds:
            raise ValueError(
                "Two runs have the same config and seed, and count as one: "
                f"'{seeds[result.seed][0]}' and '{path}'. Leave one out."
            )
        seeds[result.seed] = path, result
    entries = [
        Entry(name, [result for _, result in seeds.values()])
        for name, seeds in systems.items()
    ]
    return sorted(entries, key=lambda entry: -entry.mean("average_accuracy"))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _field(result: RunResult, name: str) -> Any:
    if name == "backend":
        return result.backend
    return result.config.get(name, 0 if name in AFTERWARDS else None)


def _title(result: RunResult, others: list[RunResult]) -> str:
    """Says what was learned, and in more detail if another has the same short title."""
    title = _short_title(result)
    alike = [_setting(other) for other in others if _short_title(other) == title]
    more = [
        f"{_words(name)} {value}"
        for name, value in _setting(result).items()
        if any(setting.get(name) != value for setting in alike)
    ]
    return ", ".join([title, *more])


def _short_title(result: RunResult) -> str:
    config = result.config
    cycles = config.get("cycles", 1)
    rounds = f", {cycles} times round" if cycles > 1 else ""
    return (
        f"{result.experiment.capitalize()} {config['source']}: {config['tasks']} tasks "
        f"of {config['steps']} steps{rounds}"
    )


def _compare(results: list[RunResult], published: dict) -> str:
    differing = []
    for name, value in published.get(results[0].experiment, {}).items():
        found = list(dict.fromkeys(result.config.get(name) for result in results))
        if found != [value]:
            given = ", ".join(str(x) for x in found)
            differing.append(f"{_words(name)} {given} (published: {value})")
    if results[0].experiment not in published:
        return "There is no published setting."
    if not differing:
        return "The published setting."
    return f"Not the published setting: {'; '.join(differing)}."


def _row(entry: Entry) -> dict[str, str]:
    first = entry.results[0]
    tasks = first.config["tasks"]
    weights, bits = first.memory["weights"], first.contexts["bits_per_task"]
    drifts = [result.contexts["orthogonality_drift"] for result in entry.results]
    # The first visit's time includes compilation.
    seconds = [
        np.median(
            result.timings["train_seconds"][1:] or result.timings["train_seconds"]
        )
        for result in entry.results
    ]
    return {
        "system": entry.name,
        "runs": str(len(entry.results)),
        "average %": entry.describe("average_accuracy"),
        "task 0 %": in_percent([r.accuracy_matrix[-1, 0] for r in entry.results]),
        "just trained %": entry.describe("learning_accuracy"),
        "forgetting %": entry.describe("forgetting"),
        "backward transfer %": entry.describe("backward_transfer"),
        "forward transfer %": entry.describe("forward_transfer"),
        "weights": format_bytes(weights),
        "weights/task": format_bytes(None if weights is None else weights / tasks),
        "beside": format_bytes(first.memory["consolidation"]),
        "context bits/task": UNKNOWN if bits is None else str(bits),
        "drift": UNKNOWN if None in drifts else f"{max(drifts):.1e}",
        "s/visit": f"{np.median(seconds):.2f}",
        "backend": first.backend,
    }


def in_percent(values: Sequence[float] | np.ndarray) -> str:
    """The mean in percent, and the standard deviation if there is more than one."""
    percent = 100 * np.asarray(values)
    if np.isnan(percent).any():
        return UNKNOWN
    deviation = f" ± {np.std(percent, ddof=1):.1f}" if len(percent) > 1 else ""
    return f"{np.mean(percent):.1f}{deviation}"


def format_bytes(count: float | None) -> str:
    """Writes a number of bytes for people."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
