"""Benchmarks: a config is run, gives a result, and results give a report.

They need TensorFlow, tensorflow-datasets and scikit-learn for the data, matplotlib for
the plots and rich for the command line: `pip install "keras-psp[bench]"`.
"""

from keras_psp.benchmarks.accuracy_matrix import AccuracyMatrix
from keras_psp.benchmarks.config import EXPERIMENTS
from keras_psp.benchmarks.config import PermutedConfig
from keras_psp.benchmarks.metrics import average_accuracy
from keras_psp.benchmarks.metrics import backward_transfer
from keras_psp.benchmarks.metrics import forgetting
from keras_psp.benchmarks.report import report
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.run import run
from keras_psp.benchmarks.task_accuracy import TaskAccuracy

__all__ = [
    "EXPERIMENTS",
    "AccuracyMatrix",
    "PermutedConfig",
    "RunResult",
    "TaskAccuracy",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "report",
    "run",
]
