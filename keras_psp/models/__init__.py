"""Functional builders of superposed models."""

from keras_psp.models.mlp import mlp
from keras_psp.models.task_model import TaskModel

__all__ = ["TaskModel", "mlp"]
