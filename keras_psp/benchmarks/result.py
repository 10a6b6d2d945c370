"""What a run gives, as one JSON file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from keras_psp._core.files import open_atomically
from keras_psp.evaluation.metrics import METRICS
from keras_psp.evaluation.metrics import average_accuracy
from keras_psp.evaluation.metrics import forgetting
from keras_psp.evaluation.metrics import forward_transfer

FILE_NAME = "result.json"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        experiment: Name of the experiment.
        config: The config's fields.
        seed: The config's seed.
        versions: Version of each package that took part.
        backend: Keras' backend.
        device: What it ran on: `platform`, `name`, `cpus`.
        jit_compile: Whether the model was compiled by XLA (or by torch.compile).
        contexts: What they cost and are: `bits_per_task` and `numbers_per_task` of all
            layers together, and `orthogonality_drift`, the largest element of
            |C_k C_k^T - I| of any, after training; `None` if they are not trained.
        memory: Bytes: `weights`, of all that it takes to answer for every task (of all
            networks, if each task has one), and `consolidation`, of what is kept
            beside them while training.
        examples: How many examples each class of each task has: lists, `train` and
            `test`.
        timings: Seconds: `train_seconds` and `test_seconds`, a number for each visit to
            a task (the first includes compilation), and `total_seconds`.
        matrix: R[i, j], the accuracy on task j after training task i (after visit i, if
            tasks are visited more than once): lists; `None` for the tasks not yet seen.
        ahead: The accuracy on each task right before its first training; `None` for
            task 0, and where each task has a network of its own.
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

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """The matrix as an array, NaN for the tasks not yet seen."""
        return np.array(self.matrix, dtype="float64")

    @property
    def metrics(self) -> dict[str, float]:
        """What the matrix says: each of `keras_psp.benchmarks.METRICS`, by name.

        And `forward_transfer`; `None` where it is not known.
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
        """Writes `result.json` into a folder, beside and renamed, and returns its path.

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
            ValueError: The file is damaged.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(f"There is no result there. Received: {path}")
        try:
            content = json.loads(path.read_text())
            names = [field.name for field in dataclasses.fields(cls)]
            result = cls(**{name: content[name] for name in names})
            average_accuracy(result.accuracy_matrix)  # Raises if it is damaged.
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The result is damaged: {path} ({error!r})") from error
        return result
