"""Models in the formats of other runtimes, which need neither keras_psp nor Keras."""

from keras_psp.exporting.export import export
from keras_psp.exporting.model_card import model_card

__all__ = ["export", "model_card"]
