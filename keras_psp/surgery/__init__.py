"""Surgery: plain Keras models -> superposed ones, and back."""

from keras_psp.surgery.convert import convert
from keras_psp.surgery.extract import extract
from keras_psp.surgery.superpose import superpose

__all__ = ["convert", "extract", "superpose"]
