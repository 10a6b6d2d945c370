"""What a run gives, as one JSON file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from keras_psp.benchmarks.files import open_atomically
from keras_psp.benchmarks.metrics import average_accuracy
from keras_psp.benchmarks.metrics import backward_transfer
from keras_psp.benchmarks.metrics import forgetting

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
        examples: How many examples each class of each task has: lists, `train` and
            `test`.
        timings: Seconds: `train_seconds` and `test_seconds`, a number for each task
            (the first includes compilation), and `total_seconds`.
        matrix: R[i, j], the accuracy on task j after training task i: lists; `None`
            for the tasks not yet seen.
    """

    experiment: str
    config: dict
    seed: int
    versions: dict
    backend: str
    device: dict
    jit_compile: bool
    contexts: dict
    examples: dict
    timings: dict
    matrix: list

    @property
    def accuracy_matrix(self) -> np.ndarray:
        """The matrix as an array, NaN for the tasks not yet seen."""
        return np.array(self.matrix, dtype="float64")

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over all tasks after the last one, in [0, 1]."""
        return average_accuracy(self.accuracy_matrix)

    @property
    def forgetting(self) -> float:
        """How far tasks fell from their best accuracy, on average."""
        return forgetting(self.accuracy_matrix)

    @property
    def backward_transfer(self) -> float:
        """What training later tasks did to earlier ones, on average."""
        return backward_transfer(self.accuracy_matrix)

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `result.json` into a folder, beside and renamed, and returns its path.

        Raises:
            OSError: The folder cannot be written.
        """
        content = {
            **dataclasses.asdict(self),
            "average_accuracy": self.average_accuracy,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
        }
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
