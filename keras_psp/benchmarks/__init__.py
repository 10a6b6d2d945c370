"""Benchmarks: `run()` takes a config and returns a result; `report()` compares results.

They need TensorFlow, tensorflow-datasets and scikit-learn for the data, matplotlib for
the plots and rich for the command line: `pip install "keras-psp[bench]"`.
"""

from keras_psp.benchmarks._tables import describe_system
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.config import option
from keras_psp.benchmarks.fresh_start import FreshStart
from keras_psp.benchmarks.incremental_config import IncrementalConfig
from keras_psp.benchmarks.permuted_config import PermutedConfig
from keras_psp.benchmarks.register import register
from keras_psp.benchmarks.report import Report
from keras_psp.benchmarks.report import report
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.rotating_config import RotatingConfig
from keras_psp.benchmarks.run import run
from keras_psp.benchmarks.run_suite import run_suite
from keras_psp.benchmarks.search import TUNERS
from keras_psp.benchmarks.search import Search
from keras_psp.benchmarks.suites import EXPERIMENTS
from keras_psp.benchmarks.suites import SUITES
from keras_psp.consolidation.end_task import EndTask
from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix
from keras_psp.evaluation.metrics import METRICS
from keras_psp.evaluation.metrics import average_accuracy
from keras_psp.evaluation.metrics import backward_transfer
from keras_psp.evaluation.metrics import forgetting
from keras_psp.evaluation.metrics import forward_transfer
from keras_psp.evaluation.metrics import learning_accuracy
from keras_psp.evaluation.metrics import retention
from keras_psp.evaluation.task_accuracy import TaskAccuracy

__all__ = [
    "EXPERIMENTS",
    "METRICS",
    "AccuracyMatrix",
    "Config",
    "EndTask",
    "FreshStart",
    "IncrementalConfig",
    "PermutedConfig",
    "Report",
    "RotatingConfig",
    "RunResult",
    "SUITES",
    "Search",
    "TUNERS",
    "TaskAccuracy",
    "average_accuracy",
    "backward_transfer",
    "describe_system",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
    "option",
    "register",
    "report",
    "retention",
    "run",
    "run_suite",
]
