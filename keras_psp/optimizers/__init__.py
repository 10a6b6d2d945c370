"""Optimizers for models whose tasks have weights of their own."""

from keras_psp.optimizers.per_task import PerTask

__all__ = ["PerTask"]
