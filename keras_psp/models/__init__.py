"""Functional builders of superposed models."""

from keras_psp.models.mlp import mlp
from keras_psp.models.resnet18 import resnet18
from keras_psp.models.task_model import TaskModel

__all__ = ["TaskModel", "mlp", "resnet18"]
