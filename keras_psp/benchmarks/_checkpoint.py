"""What a run leaves at the end of each task, so that it can be continued from there."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_number
from keras_psp._core.files import hash_file
from keras_psp._core.files import open_atomically
from keras_psp._core.files import put_in_place
from keras_psp._core.files import remove_temporary_files
from keras_psp.benchmarks.config import Config
from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix

FILE_NAME = "progress.json"
_WEIGHTS = re.compile(r"visit-\d+\.weights\.h5")
_logger = logging.getLogger(__name__)


class Checkpoint(keras.callbacks.Callback):
    """Saves at the end of each task all that the rest of a run depends on.

    For a `fit()` in which an epoch is a visit to a task. The weights, which include
    those of the optimizer and of the seed generators, go to a file named after the
    visit. Then `progress.json` is replaced by one that names this file and its SHA-256.
    Only then is the file of the visit before removed. So a kill at any moment leaves a
    `progress.json` and the weights that it names. A `progress.json` without weights is
    written when `fit()` begins: it says that the folder belongs to this run.

    Args:
        folder: Where the files are.
        config: The run's config.
        matrix: The `AccuracyMatrix` of the same `fit()`, before it among the callbacks.
        resume: Boolean, whether to continue from the files in the folder. If it is
            `False`, or there are none, the run begins anew, and `fit()` removes the
            files of another run when it begins.

    Attributes:
        visits: How many visits the files hold; `fit()` is to begin after them.
        seconds: How long these visits took.

    Raises:
        ValueError: The files are damaged, or belong to a run with another config.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: Config,
        matrix: AccuracyMatrix,
        resume: bool,
    ):
        super().__init__()
        self.folder = Path(folder)
        self.matrix = matrix
        self.visits, self.seconds = 0, 0.0
        self._run = describe(config)
        self._fields = dataclasses.fields(config)
        self._start = time.perf_counter()
        self._progress: dict[str, Any] = {}
        if resume and has_checkpoint(folder):
            self._progress = self._load()
            self.visits = self._progress["visits"]
            self.seconds = self._progress["seconds"]

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self.visits:
            self._write(0, None)
            self._remove_weights()
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        path = self.folder / self._progress["weights"]
        try:
            self.model.load_weights(path)
        except (KeyError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        try:
            self.matrix.restore(self._progress["matrix"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.folder / FILE_NAME, error) from error

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if epoch + 1 == self.matrix.tasks.num_visits:
            return  # The result is next.
        name = f"visit-{epoch + 1}.weights.h5"
        temporary = self.folder / f".{name}"
        try:
            self.model.save_weights(temporary)
            digest = hash_file(temporary)
            put_in_place(temporary, self.folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._write(epoch + 1, name, digest)
        self._remove_weights(but=name)

    def remove(self) -> None:
        """Removes the files, because the run has a result."""
        (self.folder / FILE_NAME).unlink(missing_ok=True)
        self._remove_weights()

    def _write(self, visits: int, weights: str | None, digest: str | None = None):
        progress = {
            **self._run,
            "visits": visits,
            "seconds": self.seconds + time.perf_counter() - self._start,
            "weights": weights,
            "sha256": digest,
            "matrix": self.matrix.state(),
        }
        progress["content_sha256"] = _hash(progress)
        content = json.dumps(progress, allow_nan=False).encode()
        with open_atomically(self.folder / FILE_NAME) as file:
            file.write(content)

    def _remove_weights(self, but: str | None = None) -> None:
        for path in self.folder.iterdir():
            if _WEIGHTS.fullmatch(path.name) and path.name != but:
                path.unlink()
        remove_temporary_files(self.folder)

    def _load(self) -> dict[str, Any]:
        path = self.folder / FILE_NAME
        try:
            progress = json.loads(path.read_text())
            wanted = {"visits", "seconds", "weights", "matrix", *self._run}
            missing = wanted - {*progress}
            if missing:
                raise ValueError(f"no {min(missing)}")
            if progress.pop("content_sha256", None) not in (None, _hash(progress)):
                raise ValueError("its content is not what was written")
            check_integer("visits", progress["visits"], 0)
            check_number("seconds", progress["seconds"])
            if not isinstance(progress["config"], dict):
                raise TypeError(f"config={progress['config']!r}")
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error
        check_same_run(path, progress, self._run, self._fields)
        if progress["visits"] == 0:
            return progress
        if not _WEIGHTS.fullmatch(str(progress["weights"])):
            raise _damaged(path, f"it names no weights: {progress['weights']!r}")
        weights = self.folder / progress["weights"]
        if "sha256" not in progress:
            _logger.warning(
                "%r was written by keras-psp 0.1 and has no SHA-256: whether %r is "
                "damaged cannot be told.",
                *(str(path), weights.name),
            )
            return progress
        try:
            digest = hash_file(weights)
        except OSError as error:
            raise _damaged(weights, error) from error
        if digest != progress["sha256"]:
            raise _damaged(weights, f"its SHA-256 is not that in {FILE_NAME}")
        return progress


def has_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether the folder holds a run that has not ended and can be resumed."""
    return (Path(folder) / FILE_NAME).exists()


def count_saved(folder: str | os.PathLike) -> int:
    """Returns how many visits to tasks a folder's unfinished run has saved."""
    path = Path(folder) / FILE_NAME
    return json.loads(path.read_text())["visits"] if path.exists() else 0


def describe(config: Config) -> dict[str, Any]:
    """Returns what two runs must have in common for one to continue the other."""
    return {
        "experiment": config.experiment,
        "backend": keras.backend.backend(),
        "config": dataclasses.asdict(config),
    }


def check_same_run(
    path: Path, found: dict, wanted: dict, fields: Iterable[dataclasses.Field]
) -> None:
    """Raises a `ValueError` that names the fields in which two runs differ.

    Args:
        path: The file of the run that was found.
        found: What `describe()` has said of it.
        wanted: What `describe()` says of the other.
        fields: The config's fields. Those that an earlier release did not have yet had
            their defaults.
    """
    there, here = (
        {**run["config"], "experiment": run["experiment"], "backend": run["backend"]}
        for run in (found, wanted)
    )
    there = {**{field.name: field.default for field in fields}, **there}
    differing = [
        f"{name}={there.get(name)!r} there and {name}={here.get(name)!r} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise ValueError(
            f"A run can be resumed with its own config only; {str(path)!r} differs: "
            + ", ".join(differing)
        )


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"The checkpoint is damaged: {str(path)!r} ({reason})")


def _hash(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
