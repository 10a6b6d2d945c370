"""KerasTuner searches the benchmarks' configs, and a trial is a run.

`RunHyperModel` is the space and the run, `tune()` a whole search, which is what
`keras-psp tune` calls. They need KerasTuner: `pip install "keras-psp[tune]"`.

Several processes share one search as KerasTuner's chief and workers do: each is the
same command with the same `--output`, with `KERASTUNER_ORACLE_IP` and
`KERASTUNER_ORACLE_PORT` set to where the chief listens, and `KERASTUNER_TUNER_ID` to
`chief` in the one that gives out the trials, and to a name of its own in each of those
that run them.
"""

try:
    import keras_tuner  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Tuning needs KerasTuner. Install it with all that a search needs: "
        'pip install "keras-psp[tune]"'
    ) from error

from keras_psp.tuning._spaces import default_space
from keras_psp.tuning.run_hyper_model import RunHyperModel
from keras_psp.tuning.tune import tune

__all__ = ["RunHyperModel", "default_space", "tune"]
