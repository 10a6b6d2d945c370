"""What a run leaves at the end of each task, for it to be continued from there."""

import dataclasses
import json
import os
import time
from pathlib import Path

import keras

from keras_psp._core.files import open_atomically
from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix

FILE_NAME = "progress.json"


class Checkpoint(keras.callbacks.Callback):
    """Saves at the end of each task all that the rest of a run depends on.

    For a `fit()` in which an epoch is a visit to a task. The weights, the optimizer's
    and the seed generators' among them, go to a file of their own, named after the
    visit; then `progress.json` is replaced by one that names it. A kill at any moment
    leaves a `progress.json` and the weights it names.

    Args:
        folder: Where the files are.
        config: The run's config.
        matrix: The `AccuracyMatrix` of the same `fit()`, before it among the callbacks.
        resume: Boolean, whether to go on from files that are there; if not, or there
            are none, it begins anew.

    Attributes:
        visits: How many visits the files hold, and `fit()` is to leave out.
        seconds: How long they took.

    Raises:
        ValueError: The files are damaged, or are of a run with another config.
    """

    def __init__(
        self, folder: str | os.PathLike, config, matrix: AccuracyMatrix, resume: bool
    ):
        super().__init__()
        self.folder = Path(folder)
        self.matrix = matrix
        self.visits, self.seconds = 0, 0.0
        self._run = describe(config)
        self._start = time.perf_counter()
        self._progress = None
        if not resume:
            self.remove()  # What another run has left.
        elif has_checkpoint(folder):
            self._progress = self._load()
            self.visits = self._progress["visits"]
            self.seconds = self._progress["seconds"]

    def on_train_begin(self, logs=None):
        if not self._progress:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        path = self.folder / self._progress["weights"]
        try:
            self.model.load_weights(path)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"The checkpoint is damaged: {path} ({error})") from error
        try:
            self.matrix.restore(self._progress["matrix"])
        except (KeyError, TypeError, ValueError) as error:
            path = self.folder / FILE_NAME
            raise ValueError(f"The checkpoint is damaged: {path} ({error})") from error

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.matrix.tasks.num_visits:
            return  # The result is next.
        name = f"visit-{epoch + 1}.weights.h5"
        beside = self.folder / f".{name}"
        try:
            self.model.save_weights(beside)
            os.replace(beside, self.folder / name)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        seconds = self.seconds + time.perf_counter() - self._start
        progress = {
            **self._run,
            "visits": epoch + 1,
            "seconds": seconds,
            "weights": name,
            "matrix": self.matrix.state(),
        }
        with open_atomically(self.folder / FILE_NAME) as file:
            file.write(json.dumps(progress).encode())
        self._remove_weights(but=name)

    def remove(self):
        """Removes the files: the run has a result."""
        for path in self.folder.glob(f"*{FILE_NAME}*"):
            path.unlink()
        self._remove_weights()

    def _remove_weights(self, but=None):
        # And what a kill has left beside.
        for path in self.folder.glob("*visit-*.weights.h5"):
            if path.name != but:
                path.unlink()

    def _load(self):
        path = self.folder / FILE_NAME
        try:
            progress = json.loads(path.read_text())
            wanted = {"visits", "seconds", "weights", "matrix", *self._run}
            missing = wanted - {*progress}
        except (TypeError, ValueError) as error:
            raise ValueError(f"The checkpoint is damaged: {path} ({error})") from error
        if missing:
            raise ValueError(f"The checkpoint is damaged: {path} (no {min(missing)})")
        check_same_run(path, progress, self._run)
        return progress


def has_checkpoint(folder):
    """Whether a run that has not ended can be resumed there."""
    return (Path(folder) / FILE_NAME).exists()


def describe(config):
    """What two runs must have in common for one to go on where the other ended."""
    return {
        "experiment": config.experiment,
        "backend": keras.backend.backend(),
        "config": dataclasses.asdict(config),
    }


def check_same_run(path, found, wanted):
    """Raises a `ValueError` that names the fields in which two runs differ."""
    found = {**found["config"], **{k: found[k] for k in ("experiment", "backend")}}
    wanted = {**wanted["config"], **{k: wanted[k] for k in ("experiment", "backend")}}
    differing = [
        f"{name}={found.get(name)!r} there and {name}={wanted.get(name)!r} here"
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"A run can be resumed with its own config only; {path} differs: "
            + ", ".join(differing)
        )
