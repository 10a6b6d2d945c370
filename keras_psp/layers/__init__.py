"""Superposed layers: a Keras layer with a context of its own."""

from keras_psp.layers.psp_complex_dense import PSPComplexDense
from keras_psp.layers.psp_dense import PSPDense

__all__ = ["PSPComplexDense", "PSPDense"]
