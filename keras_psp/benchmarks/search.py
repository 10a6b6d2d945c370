"""The description of a search for hyperparameters, a JSON file beside its runs."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.files import check_empty
from keras_psp._core.files import open_atomically
from keras_psp.benchmarks._checkpoint import check_same_run
from keras_psp.benchmarks._tables import format_bytes
from keras_psp.benchmarks._tables import in_percent
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.result import FILE_NAME as RESULT_NAME
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.suites import EXPERIMENTS
from keras_psp.evaluation.metrics import learning_accuracy
from keras_psp.evaluation.metrics import retention

FILE_NAME = "search.json"
TUNERS = ("random", "hyperband", "bayesian")


@dataclasses.dataclass(frozen=True)
class Search:
    """A search: its folder holds `search.json`, and a folder for each of its runs.

    Attributes:
        experiment: Name of the experiment.
        backend: Keras' backend.
        config: The fields of the config that all trials share.
        space: The choices to search, by name of the field.
        tuner: One of `TUNERS`.
        trials: The largest number of trials.

    Example:

    >>> import dataclasses, keras
    >>> from keras_psp.benchmarks import PermutedConfig, Search
    >>> search = Search(
    ...     experiment="permuted",
    ...     backend=keras.backend.backend(),
    ...     config=dataclasses.asdict(PermutedConfig()),
    ...     space={"units": [64, 128]},
    ...     tuner="random",
    ...     trials=2,
    ... )
    >>> search.describe_trial({"units": 128, "depth": 3})
    'units 128'
    """

    experiment: str
    backend: str
    config: dict
    space: dict
    tuner: str
    trials: int

    def claim(self, folder: str | os.PathLike, resume: bool = False) -> None:
        """Begins this search in a folder, or continues it there if `resume`.

        A search may be continued with another number of trials.

        Raises:
            FileExistsError: The folder holds files but no search, or a search and
                `resume` is `False`.
            ValueError: It holds another search, or the file is damaged.
            OSError: It cannot be written.
        """
        path = Path(folder) / FILE_NAME
        if resume and path.exists():
            self.check(folder)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_empty(path.parent, way_out="continue a search there with --resume")
        with open_atomically(path) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1).encode())

    def check(self, folder: str | os.PathLike) -> None:
        """Raises a `ValueError` if the folder's search is not this one."""
        found = dataclasses.asdict(Search.load(folder))
        wanted = json.loads(json.dumps(dataclasses.asdict(self)))
        for search in (found, wanted):
            del search["trials"]
            space = {f"choices of {k}": v for k, v in search.pop("space").items()}
            search["config"] |= {"tuner": search["tuner"], **space}
        fields = dataclasses.fields(EXPERIMENTS.get(self.experiment, Config))
        check_same_run(Path(folder) / FILE_NAME, found, wanted, fields)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Search":
        """Reads a folder's search.

        Raises:
            FileNotFoundError: There is none.
            ValueError: The file is damaged.
        """
        path = Path(folder) / FILE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"There is no search there. Received: {str(folder)!r}"
            )
        try:
            search = cls(**json.loads(path.read_text(encoding="utf-8")))
            search._check()
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"The search is damaged: {str(path)!r} ({error!r})"
            ) from error
        return search

    def has_trial(self, result: RunResult) -> bool:
        """Whether a result may be one of this search's trials."""
        length = EXPERIMENTS[self.experiment].length
        return result.experiment == self.experiment and {
            *self.space,
            length,
        } <= {*result.config}

    def results(self, folder: str | os.PathLike) -> list[RunResult]:
        """Reads the results of the trials so far, the best first: see `rank()`."""
        paths = Path(folder).glob(f"*/{RESULT_NAME}")
        return self.rank([RunResult.load(path) for path in sorted(paths)])

    def rank(self, results: Sequence[RunResult]) -> list[RunResult]:
        """Sorts by average accuracy, the best first; shorter runs come last."""
        length = EXPERIMENTS[self.experiment].length
        return sorted(
            results,
            key=lambda result: (-result.config[length], -result.average_accuracy),
        )

    def rows(
        self, results: Sequence[RunResult], most: int = 10
    ) -> list[dict[str, str]]:
        """The table of the best results; the best average is marked with `**`."""
        rows = [self._row(result) for result in self.rank(results)[:most]]
        rows[0]["average %"] = f"**{rows[0]['average %']}**"
        return rows

    def describe_trial(self, config: dict) -> str:
        """Returns a trial's choices in words, and its length if it is a short one."""
        length = EXPERIMENTS[self.experiment].length
        names = [*self.space]
        if config.get(length, self.config[length]) != self.config[length]:
            names.append(length)
        return ", ".join(f"{name.replace('_', ' ')} {config[name]}" for name in names)

    def describe_space(self) -> str:
        """Returns the space in words."""
        return "; ".join(
            f"{name.replace('_', ' ')} {', '.join(map(str, choices))}"
            for name, choices in self.space.items()
        )

    def _check(self) -> None:
        """Raises an error if a field is not what `claim()` writes."""
        check_name("experiment", self.experiment, EXPERIMENTS)
        check_name("tuner", self.tuner, TUNERS)
        check_integer("trials", self.trials)
        if not isinstance(self.backend, str):
            raise TypeError(f"backend={self.backend!r}")
        EXPERIMENTS[self.experiment](**self.config)  # Raises.
        fields = EXPERIMENTS[self.experiment].__dataclass_fields__
        for name, choices in self.space.items():
            check_name("hyperparameter", name, fields)
            if not isinstance(choices, list) or not choices:
                raise TypeError(f"choices of {name}={choices!r}")

    def _row(self, result: RunResult) -> dict[str, str]:
        matrix = result.accuracy_matrix
        return {
            "trial": self.describe_trial(result.config),
            "average %": in_percent([result.average_accuracy]),
            "task 0 %": in_percent([matrix[-1, 0]]),
            "retention %": in_percent([retention(matrix)]),
            "just trained %": in_percent([learning_accuracy(matrix)]),
            "forgetting %": in_percent([result.forgetting]),
            "weights": format_bytes(result.memory["weights"]),
            "seconds": f"{result.timings['total_seconds']:.0f}",
        }
