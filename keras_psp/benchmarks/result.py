"""What a run gives, as one JSON file."""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_psp._core.files import open_atomically
from keras_psp._core.table import Shown
from keras_psp.evaluation.accuracy_matrix import matrix_rows
from keras_psp.evaluation.metrics import METRICS
from keras_psp.evaluation.metrics import average_accuracy
from keras_psp.evaluation.metrics import forgetting
from keras_psp.evaluation.metrics import forward_transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE_NAME = "result.json"


@dataclasses.dataclass(frozen=True)
class RunResult(Shown):
    """The result of one run; in a notebook, the accuracies after each task.

    Attributes:
        experiment: Name of the experiment.
        config: The config's fields.
        seed: The config's seed.
        versions: Version of each package that took part.
        backend: Keras' backend.
        device: What it ran on: `platform`, `name`, `cpus`.
        jit_compile: Whether the model was compiled by XLA (or by torch.compile).
        contexts: `bits_per_task` and `numbers_per_task` of the contexts of all layers
            together, and `orthogonality_drift`, the largest element of
            |C_k C_k^T - I| of any context after training; `None` if contexts are not
            trained. A number is `None`, too, if the model did not tell it.
        memory: Bytes: `weights`, of all that is needed to answer for every task (of all
            networks, if each task has one), and `consolidation`, of what the
            consolidation keeps while training. `None` if the model did not tell.
        examples: How many examples each class of each task has: lists, `train` and
            `test`.
        timings: Seconds: `train_seconds` and `test_seconds`, a number for each visit to
            a task (the first includes compilation), and `total_seconds`.
        matrix: R[i, j], the accuracy on task j after training task i (after visit i, if
            tasks are visited more than once): lists; `None` for the tasks not yet seen.
        ahead: The accuracy on each task right before its first training; `None` for
            task 0, and where each task has a network of its own.
        afterwards: What the config's options `part_bits` and `guessed` ask for.
            `in_few_bits`: `accuracy` on each task and bytes of `weights` once tasks'
            own parts are rounded. `guessed`: the number of `images` of each task, and
            `by_image` and `by_batch` (of 32) how often their task is `found` and the
            `accuracy` of the answers, by task. A model with rounded parts guesses with
            these.
    """

    experiment: str
    config: dict
    seed: int
    versions: dict
    backend: str
    device: dict
    jit_compile: bool
    contexts: dict
    memory: dict
    examples: dict
    timings: dict
    matrix: list
    ahead: list
    afterwards: dict = dataclasses.field(default_factory=dict)

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """The matrix as an array, NaN for the tasks not yet seen."""
        return np.array(self.matrix, dtype="float64")

    @property
    def rows(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The matrix, a dictionary for each row: the visit, and accuracies by task."""
        return matrix_rows(self.accuracy_matrix)

    def plot(self, path: Any = None) -> "Figure":
        """Draws the accuracy on task 0 and on the tasks seen so far.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        from keras_psp.benchmarks._plots import plot_retention
        from keras_psp.benchmarks._tables import Entry
        from keras_psp.benchmarks._tables import describe_system

        figure = plot_retention([Entry(describe_system(self), [self])])
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    @property
    def metrics(self) -> dict[str, float | None]:
        """Each of `keras_psp.benchmarks.METRICS` and `forward_transfer`, by name.

        `None` where it is not known.
        """
        matrix = self.accuracy_matrix
        found = {name: metric(matrix) for name, metric in METRICS.items()}
        ahead = np.array(self.ahead, dtype="float64")
        num_classes = len(self.examples["train"][0])
        found["forward_transfer"] = forward_transfer(ahead, num_classes)
        return {name: None if np.isnan(x) else x for name, x in found.items()}

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over all tasks after the last one, in [0, 1]."""
        return average_accuracy(self.accuracy_matrix)

    @property
    def forgetting(self) -> float:
        """How far tasks fell from their best accuracy, on average."""
        return forgetting(self.accuracy_matrix)

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `result.json` into a folder at once, and returns its path.

        Raises:
            OSError: The folder cannot be written.
        """
        content = {**dataclasses.asdict(self), **self.metrics}
        path = Path(folder) / FILE_NAME
        with open_atomically(path) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RunResult":
        """Reads a result from its folder or file.

        Raises:
            FileNotFoundError: There is none.
            OSError: The file cannot be read.
            ValueError: The file is damaged, or a field is not what a run writes.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"There is no result there. Received: {str(path)!r}"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            names = [field.name for field in dataclasses.fields(cls)]
            content = {"afterwards": {}, **content}  # Not in results of release 0.1.
            result = cls(**{name: content[name] for name in names})
            _check(result)
        except (
            AttributeError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"The result is damaged: {str(path)!r} ({error!r})"
            ) from error
        return result


def _check(result: RunResult) -> None:
    """Raises a `ValueError` that names the field if it is not what a run writes."""

    def check(name, value, fits):
        if not fits(value):
            raise ValueError(f"unexpected {name}: {value!r:.100}")

    for name in ("experiment", "backend"):
        check(name, getattr(result, name), _is_word)
    check("seed", result.seed, _is_count)
    check("jit_compile", result.jit_compile, lambda x: isinstance(x, bool))
    check("versions", result.versions, lambda x: all(map(_is_text, x.values())))
    for name, fits in _DEVICE.items():
        check(f"device {name}", result.device[name], fits)
    for name in ("bits_per_task", "numbers_per_task", "orthogonality_drift"):
        check(name, result.contexts[name], _is_known_or_none)
    for name in ("weights", "consolidation"):
        check(f"memory of {name}", result.memory[name], _is_known_or_none)
    for name in ("train", "test"):
        for counts in result.examples[name]:
            check("examples", counts, lambda x: x and all(map(_is_count, x)))
    for name in ("train_seconds", "test_seconds"):
        check(name, result.timings[name], lambda x: x and all(map(_is_amount, x)))
    check("total_seconds", result.timings["total_seconds"], _is_amount)

    for name, value in result.config.items():
        check(f"config {name}", value, _CONFIG.get(name, _is_scalar))
    for name in ("source", "tasks", "steps", "context"):
        check(f"config {name}", result.config[name], _CONFIG[name])
    tasks = result.config["tasks"]
    check("ahead", result.ahead, lambda x: len(x) == tasks)
    check("examples", result.examples["train"], bool)
    for row in (*result.matrix, result.ahead):
        check("matrix", row, lambda x: len(x) == tasks)
        check("accuracy", row, lambda x: all(y is None or _is_share(y) for y in x))
    afterwards = result.afterwards
    known = {"in_few_bits", "guessed"}
    check("afterwards", afterwards, lambda x: isinstance(x, dict) and set(x) <= known)
    if "in_few_bits" in afterwards:
        check("memory", afterwards["in_few_bits"]["weights"], _is_amount)
    if "guessed" in afterwards:
        check("images", afterwards["guessed"]["images"], _is_positive)
    for shares in _shares_afterwards(afterwards):
        check("accuracy", shares, lambda x: len(x) == tasks and all(map(_is_share, x)))
    average_accuracy(result.accuracy_matrix)  # Raises if accuracies are missing.


def _shares_afterwards(afterwards: dict) -> list[list[float]]:
    found = [afterwards[name]["accuracy"] for name in afterwards if name != "guessed"]
    for way in ("by_image", "by_batch") if "guessed" in afterwards else ():
        found += [afterwards["guessed"][way][name] for name in ("found", "accuracy")]
    return found


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_word(x: Any) -> bool:
    return isinstance(x, str) and bool(x.strip())


def _is_scalar(x: Any) -> bool:
    return x is None or isinstance(x, (bool, str)) or _is_number(x)


def _is_number(x: Any) -> bool:
    # Which leaves out NaN, and integers that no float can hold.
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e300


def _is_amount(x: Any) -> bool:
    return _is_number(x) and x >= 0


def _is_known_or_none(x: Any) -> bool:
    return x is None or _is_amount(x)


def _is_share(x: Any) -> bool:
    return _is_amount(x) and x <= 1


def _is_count(x: Any) -> bool:
    return isinstance(x, int) and _is_amount(x)


def _is_positive(x: Any) -> bool:
    return _is_count(x) and x > 0


def _is_flag(x: Any) -> bool:
    return isinstance(x, bool)


_DEVICE = {
    "name": _is_text,
    "platform": _is_text,
    "cpus": lambda x: x is None or _is_count(x),
}
# What reports compute with or put into words. A config may lack some of them, and have
# others.
_CONFIG = {
    **dict.fromkeys(("source", "context", "head", "norm", "context_over"), _is_word),
    **dict.fromkeys(("assignment", "consolidation", "optimizer"), _is_word),
    **dict.fromkeys(("model", "training"), _is_word),
    **dict.fromkeys(("learnable", "complex_valued", "separate", "joint"), _is_flag),
    **dict.fromkeys(("tasks", "steps", "cycles", "units"), _is_positive),
    **dict.fromkeys(("strength", "learning_rate", "width"), _is_amount),
    "task_learning_rate": _is_amount,
    **dict.fromkeys(("depth", "rank", "part_bits", "guessed"), _is_count),
    "schedule": _is_word,
}
