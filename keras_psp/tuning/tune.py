"""A search: one of KerasTuner's tuners; its trials are runs."""

import os
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from rich.console import Console

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.files import lock_folder
from keras_psp.benchmarks import TUNERS
from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import Search
from keras_psp.benchmarks._checkpoint import describe
from keras_psp.benchmarks._progress import RunProgress
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.search import FILE_NAME
from keras_psp.tuning.run_hyper_model import OBJECTIVE
from keras_psp.tuning.run_hyper_model import RunHyperModel


def tune(
    config: Config,
    output: str | os.PathLike,
    space: Mapping[str, Sequence] | None = None,
    tuner: str = "random",
    trials: int = 20,
    resume: bool = False,
    console: Console | None = None,
) -> list[RunResult]:
    """Searches for the config with the best average accuracy over all tasks.

    A search can be killed at any moment and resumed. It then begins again with the same
    seed, takes over the results of the finished trials, and continues the run that was
    not finished. So it makes the same trials as a search that was not killed.

    Hyperband trains many configs on few tasks (on few cycles, where images turn). It
    trains the best of them again, from the beginning, on more tasks.

    Where KerasTuner's `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT` and
    `KERASTUNER_TUNER_ID` are set, several processes with the same arguments and the
    same `output` share the search: the chief gives out the trials until all are done,
    and each worker runs some of them.

    Args:
        config: A config, one of the values of `keras_psp.benchmarks.EXPERIMENTS`: all
            fields that are not searched.
        output: Folder for `search.json` and the runs, which
            `keras_psp.benchmarks.report()` takes.
        space: Choices by name of the field. Defaults to
            `keras_psp.tuning.default_space(config)`.
        tuner: One of `"random"`, `"hyperband"` and `"bayesian"`.
        trials: Positive integer, the largest number of runs. A resumed search may have
            another.
        resume: Boolean, whether to continue the search in the folder, if there is one.
        console: The `rich.console.Console` on which each trial is reported, or `None`.

    Returns:
        The results, the best first. The best one was chosen by its test accuracy, which
        is therefore a little too high: measure it again with another seed.

    Raises:
        FileExistsError: Another process uses the folder; or it holds files, but no
            search, or `resume` is `False`.
        OSError: The folder cannot be written.
        RuntimeError: Three trials in a row have failed.
        TypeError, ValueError: An unknown tuner, field or choice, `trials` not positive;
            the folder holds another search.

    Example:

    >>> import tempfile
    >>> from keras_psp import benchmarks, tuning
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20)
    >>> space = {"units": [16, 32], "learning_rate": [1e-3, 1e-2]}
    >>> results = tuning.tune(config, tempfile.mkdtemp(), space, trials=3)
    >>> results[0].average_accuracy >= results[-1].average_accuracy
    True

    Reference:
        - [Li et al., 2018](https://arxiv.org/abs/1603.06560): Hyperband
        - [Snoek et al., 2012](https://arxiv.org/abs/1206.2944): Bayesian optimization
    """
    check_name("tuner", tuner, TUNERS)
    check_integer("trials", trials, 1)
    hypermodel = RunHyperModel(config, space, output)
    # Raises if there is no such run.
    config.build_tasks().stream(config.steps, config.batch_size)
    search = Search(
        **describe(config), space=hypermodel.space, tuner=tuner, trials=trials
    )
    is_worker, tuner_id = _role()
    if is_worker:
        while not (Path(output) / FILE_NAME).exists():
            time.sleep(0.1)  # The chief writes it.
        search.check(output)
        return _search(config, hypermodel, search, output, tuner_id, console)
    with lock_folder(output):
        search.claim(output, resume)
        return _search(config, hypermodel, search, output, tuner_id, console)


def _search(
    config: Config,
    hypermodel: RunHyperModel,
    search: Search,
    output: str | os.PathLike,
    tuner_id: str,
    console: Console | None,
) -> list[RunResult]:
    hyperparameters = keras_tuner.HyperParameters()
    hypermodel.declare_hyperparameters(hyperparameters)
    trial_tuner: Any = _TUNERS[search.tuner](
        hyperparameters=hyperparameters,
        objective=OBJECTIVE,
        seed=config.seed + 1,  # KerasTuner would draw one for 0.
        # KerasTuner's files are for reading only; a search is resumed from its results.
        directory=Path(output) / "keras_tuner",
        project_name=tuner_id,
        overwrite=True,
        **_options(config, search),
    )
    trial_tuner.oracle.max_trials = search.trials  # Hyperband's has no argument for it.
    trial_tuner.oracle.verbose = 0
    trial_tuner.run_model = hypermodel
    trial_tuner.console = console or Console(quiet=True)
    trial_tuner.search()
    return search.results(output)


class _Runs:
    """Makes each trial a run; stands before one of KerasTuner's tuners as a base."""

    run_model: RunHyperModel
    console: Console
    oracle: Any
    search: Any

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        # KerasTuner's own method builds a model and saves weights that nobody uses.
        keras.utils.clear_session()  # Frees what the last run has compiled.
        config = self.run_model.config(trial.hyperparameters)
        progress = RunProgress(config.num_visits, config.steps, self.console)
        metrics = self.run_model.fit(trial.hyperparameters, callbacks=[progress])
        kept = metrics.get("retention", float("nan"))
        self._tell(
            trial,
            f"{100 * metrics['average_accuracy']:.1f} % on average, task 0 keeps "
            f"{100 * kept:.1f} %",
        )
        return metrics

    def on_trial_end(self, trial: Any) -> None:
        if trial.message:  # The traceback.
            self._tell(trial, f"failed: {trial.message.splitlines()[-1]}")
        super().on_trial_end(trial)  # type: ignore[misc]

    def _tell(self, trial: Any, outcome: str) -> None:
        chosen = ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.run_model.chosen(trial.hyperparameters).items()
        )
        of = f"{int(trial.trial_id) + 1} of {self.oracle.max_trials}"
        self.console.print(f"trial {of}: {chosen}: {outcome}", markup=False)


class _RandomSearch(_Runs, keras_tuner.RandomSearch):
    pass


class _Hyperband(_Runs, keras_tuner.Hyperband):
    pass


class _BayesianOptimization(_Runs, keras_tuner.BayesianOptimization):
    pass


_TUNERS = {
    "random": _RandomSearch,
    "hyperband": _Hyperband,
    "bayesian": _BayesianOptimization,
}


def _options(config: Config, search: Search) -> dict[str, Any]:
    if search.tuner == "hyperband":
        # Sweep after sweep, until all trials are done.
        return {
            "max_epochs": getattr(config, config.length),
            "hyperband_iterations": None,
        }
    if search.tuner == "bayesian":
        # KerasTuner's own default would draw most of a small search at random.
        return {
            "max_trials": search.trials,
            "num_initial_points": len(search.space) + 1,
        }
    return {"max_trials": search.trials}


def _role() -> tuple[bool, str]:
    """Returns whether this process is a worker of a chief, and its name."""
    tuner_id = os.environ.get("KERASTUNER_TUNER_ID", "tuner0")
    return "KERASTUNER_ORACLE_IP" in os.environ and "chief" not in tuner_id, tuner_id
