"""Contexts: one orthogonal map `C_k` of a layer's inputs per task."""

from keras_psp.contexts.binary import Binary
from keras_psp.contexts.context import Context
from keras_psp.contexts.families import FAMILIES
from keras_psp.contexts.families import get
from keras_psp.contexts.identity import Identity

__all__ = ["FAMILIES", "Binary", "Context", "Identity", "get"]
