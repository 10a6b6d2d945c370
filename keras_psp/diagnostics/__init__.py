"""Diagnostics: interference between tasks, memory, capacity, and the frontier."""

from keras_psp.diagnostics.capacity import capacity
from keras_psp.diagnostics.frontier import frontier
from keras_psp.diagnostics.interference import interference
from keras_psp.diagnostics.memory import memory

__all__ = ["capacity", "frontier", "interference", "memory"]
