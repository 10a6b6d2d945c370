"""Evaluation: the accuracy matrix of a run, and what is computed from it."""

from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix
from keras_psp.evaluation.evaluate import Evaluation
from keras_psp.evaluation.evaluate import evaluate
from keras_psp.evaluation.metrics import METRICS
from keras_psp.evaluation.metrics import average_accuracy
from keras_psp.evaluation.metrics import backward_transfer
from keras_psp.evaluation.metrics import forgetting
from keras_psp.evaluation.metrics import forward_transfer
from keras_psp.evaluation.metrics import learning_accuracy
from keras_psp.evaluation.metrics import retention
from keras_psp.evaluation.task_accuracy import TaskAccuracy
from keras_psp.evaluation.task_losses import StopEachTask
from keras_psp.evaluation.task_losses import task_losses

__all__ = [
    "METRICS",
    "AccuracyMatrix",
    "Evaluation",
    "StopEachTask",
    "TaskAccuracy",
    "average_accuracy",
    "backward_transfer",
    "evaluate",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
    "retention",
    "task_losses",
]
