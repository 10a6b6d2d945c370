"""KerasTuner's hypermodel of a benchmark: its `fit()` is a run."""

import dataclasses
import os
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from keras_psp.benchmarks import run
from keras_psp.benchmarks.config import Config
from keras_psp.models import TaskModel
from keras_psp.tuning._spaces import check_space
from keras_psp.tuning._spaces import default_space

OBJECTIVE = keras_tuner.Objective("average_accuracy", "max")


class RunHyperModel(keras_tuner.HyperModel):
    """KerasTuner's hypermodel of a benchmark: `fit()` runs the config of a trial.

    `fit()` calls `keras_psp.benchmarks.run()`, which builds its own model, and returns
    all metrics of the result. The objective is `average_accuracy`, to be maximized: the
    mean accuracy over all tasks after the last one.

    With an `output` folder every run has a folder there, named after its config. A run
    that was killed is resumed, and a run that has its result is not run again.

    Use it with `keras_tuner.RandomSearch` and `keras_tuner.BayesianOptimization`.
    `keras_psp.tuning.tune()` uses it with `keras_tuner.Hyperband` too, which sets the
    number of tasks, or of cycles, by the hyperparameter `tuner/epochs`.

    Args:
        config: A config, one of the values of `keras_psp.benchmarks.EXPERIMENTS`. It
            gives the fields that are not searched.
        space: Choices by name of the field. Defaults to
            `keras_psp.tuning.default_space(config)`.
        output: Folder for the runs, or `None` to write nothing.

    Raises:
        TypeError, ValueError: The space has a field that the config does not have, or a
            choice that the field cannot take.

    Example:

    >>> import tempfile, keras_tuner
    >>> from keras_psp import benchmarks, tuning
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20)
    >>> hypermodel = tuning.RunHyperModel(config, {"units": [16, 32]})
    >>> tuner = keras_tuner.RandomSearch(
    ...     hypermodel,
    ...     objective=keras_tuner.Objective("average_accuracy", "max"),
    ...     max_trials=1,
    ...     directory=tempfile.mkdtemp(),
    ... )
    >>> tuner.search(verbose=0)
    >>> hypermodel.config(tuner.get_best_hyperparameters()[0]).units in (16, 32)
    True

    Reference:
        [KerasTuner](https://keras.io/keras_tuner/)
    """

    def __init__(
        self,
        config: Config,
        space: Mapping[str, Sequence] | None = None,
        output: str | os.PathLike | None = None,
    ):
        super().__init__(name=config.experiment)
        self.base = config
        self.space = check_space(
            config, default_space(config) if space is None else space
        )
        self.output = None if output is None else Path(output)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Adds the space to the hyperparameters."""
        for name, choices in self.space.items():
            hp.Choice(name, choices)

    def chosen(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Returns the choices by name of the field."""
        # KerasTuner turns False into 0.
        return {
            name: type(choices[0])(hp.Choice(name, choices))
            for name, choices in self.space.items()
        }

    def config(self, hp: keras_tuner.HyperParameters) -> Config:
        """Returns the config with the values of the hyperparameters."""
        values = self.chosen(hp)
        if "tuner/epochs" in hp.values:  # Hyperband's.
            values[self.base.length] = hp.values["tuner/epochs"]
        return dataclasses.replace(self.base, **values)

    def build(self, hp: keras_tuner.HyperParameters) -> TaskModel:
        """Returns the model that a run would train, not yet compiled."""
        config = self.config(hp)
        return config.build_model(config.build_tasks())

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: TaskModel | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> dict[str, float]:
        """Runs the config, and returns its metrics.

        Args:
            hp: The hyperparameters.
            model: Not used: a run builds its own model after it has set the seeds.
            callbacks: More Keras callbacks for the run.
            verbose: Not used: a run prints nothing.
        """
        config, output = self.config(hp), None
        if self.output is not None:
            output = self.output / config.folder_name
        result = run(
            config,
            output=output,
            resume=output is not None,
            callbacks=callbacks,
        )
        return {name: x for name, x in result.metrics.items() if x is not None}
