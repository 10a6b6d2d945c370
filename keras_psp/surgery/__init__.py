"""Surgery: plain Keras models -> superposed ones, and back."""

from keras_psp._reading.adapters import with_adapter
from keras_psp.surgery.add_models import add_models
from keras_psp.surgery.add_models import remove_models
from keras_psp.surgery.convert import convert
from keras_psp.surgery.extract import extract
from keras_psp.surgery.stack import stack
from keras_psp.surgery.superpose import superpose

__all__ = [
    "add_models",
    "convert",
    "extract",
    "remove_models",
    "stack",
    "superpose",
    "with_adapter",
]
