"""Functional builders of superposed models."""

from keras_psp.models.mlp import mlp
from keras_psp.models.resnet18 import resnet18
from keras_psp.models.stacked_model import StackedModel
from keras_psp.models.tabular_ensemble import tabular_ensemble
from keras_psp.models.task_batches import TaskBatches
from keras_psp.models.task_model import TaskModel

__all__ = [
    "StackedModel",
    "TaskBatches",
    "TaskModel",
    "mlp",
    "resnet18",
    "tabular_ensemble",
]
