"""Superposed layers: a Keras layer with a context of its own."""

from keras_psp.layers.psp_dense import PSPDense

__all__ = ["PSPDense"]
