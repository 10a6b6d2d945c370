"""Layouts of models that are trained on more than one device."""

from keras_psp.distribution.layout_map import layout_map as layout_map

__all__ = ["layout_map"]
