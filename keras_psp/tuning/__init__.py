"""KerasTuner searches the benchmarks' configs; a trial is a run.

`RunHyperModel` holds the space and runs a trial. `tune()` is a whole search; `keras-psp
tune` calls it. They need KerasTuner: `pip install "keras-psp[tune]"`.

Several processes share one search as KerasTuner's chief and workers. Each is the same
command with the same `--output`. `KERASTUNER_ORACLE_IP` and `KERASTUNER_ORACLE_PORT`
say where the chief listens. `KERASTUNER_TUNER_ID` is `chief` in the process that gives
out the trials, and a different name in each worker that runs them.
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
