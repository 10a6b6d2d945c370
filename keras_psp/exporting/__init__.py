"""Models in the formats of other runtimes, which need neither keras_psp nor Keras."""

from keras_psp.exporting.export import export

__all__ = ["export"]
