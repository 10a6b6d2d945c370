"""Contexts: one orthogonal map `C_k` of a layer's inputs per task."""

from keras_psp.contexts.binary import Binary
from keras_psp.contexts.complex import Complex
from keras_psp.contexts.context import Context
from keras_psp.contexts.families import FAMILIES
from keras_psp.contexts.families import get
from keras_psp.contexts.fast_rotation import FastRotation
from keras_psp.contexts.hadamard import Hadamard
from keras_psp.contexts.householder import Householder
from keras_psp.contexts.identity import Identity
from keras_psp.contexts.permutation import Permutation
from keras_psp.contexts.powers import Powers
from keras_psp.contexts.rotation import Rotation
from keras_psp.contexts.signed_permutation import SignedPermutation

__all__ = [
    "FAMILIES",
    "Binary",
    "Complex",
    "Context",
    "FastRotation",
    "Hadamard",
    "Householder",
    "Identity",
    "Permutation",
    "Powers",
    "Rotation",
    "SignedPermutation",
    "get",
]
