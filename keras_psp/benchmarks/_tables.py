"""Runs put together: a table for each experiment, a row for each system."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_psp.benchmarks.result import RunResult

# The fields that make a system what it is. Its sizes, and how it is trained, are told
# only where they differ. All other fields must be equal for runs to be compared.
SYSTEM = (
    *("context", "learnable", "complex_valued", "assignment", "context_over"),
    *("head", "norm", "separate", "joint", "consolidation", "strength"),
)
SIZES = ("units", "depth", "width")
TOLD = (*SIZES, "optimizer", "learning_rate", "schedule")

CONSOLIDATION_NAMES = {
    "ewc": "EWC",
    "per_task_ewc": "EWC, anchored to each task",
    "online_ewc": "EWC, fading",
    "gram": "Gram",
    "si": "SI",
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
    def is_bound(self) -> bool:
        """Whether it need not keep anything, and shows what can be had at most."""
        config = self.results[0].config
        return config["separate"] or config["joint"]

    @property
    def matrix(self) -> np.ndarray:
        """The mean of the accuracy matrices."""
        return np.mean([result.accuracy_matrix for result in self.results], axis=0)

    def mean(self, metric: str) -> float:
        """The mean of one of the runs' metrics, NaN where it is not known."""
        return float(np.mean(self._values(metric)))

    def describe(self, metric: str) -> str:
        """The mean in percent, and the standard deviation if there is more than one."""
        return in_percent(self._values(metric))

    def _values(self, metric):
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
        """The table; the best average that is not a bound is marked with `**`."""
        rows = [_row(entry) for entry in self.entries]
        others = [i for i, entry in enumerate(self.entries) if not entry.is_bound]
        if others and len(rows) > 1:
            best = rows[others[0]]
            best["average %"] = f"**{best['average %']}**"
        return rows


def describe_system(result: RunResult) -> str:
    """Says in words what system a run is of.

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
        if config["head"] != "superposed":
            parts.append(f"{config['head']} head")
    if config["assignment"] in ASSIGNMENT_NAMES:
        parts.append(ASSIGNMENT_NAMES[config["assignment"]])
    if config["context_over"] == "channels" and config["context"] != "identity":
        parts.append("over channels")
    if config["norm"] not in (None, "task"):
        parts.append(f"{config['norm']} norms")
    if config["separate"]:
        parts.append("a network for each task")
    if config["joint"]:
        parts.append("all tasks at once")
    name = ", ".join(parts)
    if config["consolidation"] != "none":
        strength = f" ({config['strength']:g})" if config["strength"] else ""
        name += f" + {CONSOLIDATION_NAMES[config['consolidation']]}{strength}"
    return name


def group(runs: Sequence[tuple[str, RunResult]], published: dict) -> list[Group]:
    """Puts runs together.

    Args:
        runs: Pairs of a path, for error messages, and a result.
        published: The published settings, fields and values, by experiment.

    Raises:
        ValueError: Two runs differ in nothing.
    """
    settings = {}
    for path, result in runs:
        key = (result.experiment, *sorted(_setting(result).items()))
        settings.setdefault(key, []).append((path, result))
    firsts = [members[0][1] for members in settings.values()]
    groups, slugs = [], {}
    for first, members in zip(firsts, settings.values(), strict=True):
        slug = f"{first.experiment}-{first.config['source']}".replace("+", "-")
        slugs[slug] = slugs.get(slug, 0) + 1
        if slugs[slug] > 1:
            slug += f"-{slugs[slug]}"
        note = _compare(
            [result for _, result in members], published.get(first.experiment, {})
        )
        groups.append(Group(_title(first, firsts), slug, note, _entries(members)))
    return groups


def _setting(result):
    """The fields in which runs must be equal to be compared."""
    others = (*SYSTEM, *TOLD, "seed")
    return {name: x for name, x in result.config.items() if name not in others}


def _entries(members):
    differing = [
        name
        for name in (*TOLD, "backend")
        if len({_field(result, name) for _, result in members}) > 1
    ]
    systems = {}
    for path, result in members:
        name = ", ".join(
            [
                describe_system(result),
                *(f"{_words(name)} {_field(result, name)}" for name in differing),
            ]
        )
        seeds = systems.setdefault(name, {})
        if result.seed in seeds:
            raise ValueError(
                "Two runs have the same config and seed, and count as one: "
                f"{seeds[result.seed][0]} and {path}. Leave one out."
            )
        seeds[result.seed] = path, result
    entries = [
        Entry(name, [result for _, result in seeds.values()])
        for name, seeds in systems.items()
    ]
    return sorted(entries, key=lambda entry: -entry.mean("average_accuracy"))


def _words(name):
    return name.replace("_", " ")


def _field(result, name):
    return result.backend if name == "backend" else result.config.get(name)


def _title(result, others):
    """Says what was learned; and more, where others would be called the same."""
    title = _short_title(result)
    alike = [_setting(other) for other in others if _short_title(other) == title]
    more = [
        f"{_words(name)} {value}"
        for name, value in _setting(result).items()
        if any(setting[name] != value for setting in alike)
    ]
    return ", ".join([title, *more])


def _short_title(result):
    config = result.config
    cycles = config.get("cycles", 1)
    rounds = f", {cycles} times round" if cycles > 1 else ""
    return (
        f"{result.experiment.capitalize()} {config['source']}: {config['tasks']} tasks "
        f"of {config['steps']} steps{rounds}"
    )


def _compare(results, published):
    differing = []
    for name, value in published.items():
        found = list(dict.fromkeys(result.config[name] for result in results))
        if found != [value]:
            given = ", ".join(str(x) for x in found)
            differing.append(f"{_words(name)} {given} (published: {value})")
    if not differing:
        return "The published setting."
    return f"Not the published setting: {'; '.join(differing)}."


def _row(entry):
    first = entry.results[0]
    tasks = first.config["tasks"]
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
        "weights": format_bytes(first.memory["weights"]),
        "weights/task": format_bytes(first.memory["weights"] / tasks),
        "beside": format_bytes(first.memory["consolidation"]),
        "context bits/task": str(first.contexts["bits_per_task"]),
        "drift": "—" if None in drifts else f"{max(drifts):.1e}",
        "s/visit": f"{np.median(seconds):.2f}",
        "backend": first.backend,
    }


def in_percent(values: Sequence[float]) -> str:
    """The mean in percent, and the standard deviation if there is more than one."""
    values = 100 * np.asarray(values)
    if np.isnan(values).any():
        return "—"
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def format_bytes(count: float) -> str:
    """Writes a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
