"""Parameter superposition for Keras: many models in one set of weights."""

from typing import TYPE_CHECKING

from keras_psp import consolidation
from keras_psp import contexts
from keras_psp import diagnostics
from keras_psp import distribution
from keras_psp import evaluation
from keras_psp import layers
from keras_psp import models
from keras_psp import optimizers
from keras_psp import surgery
from keras_psp._core.advice import InterferenceWarning
from keras_psp._core.scope import task
from keras_psp.evaluation import evaluate
from keras_psp.exporting import export
from keras_psp.inference import infer_task
from keras_psp.surgery import convert
from keras_psp.surgery import extract
from keras_psp.surgery import stack
from keras_psp.surgery import superpose

if TYPE_CHECKING:
    from keras_psp import benchmarks
    from keras_psp import datasets
    from keras_psp import tuning

__version__ = "0.1.0"

__all__ = [
    "InterferenceWarning",
    "benchmarks",
    "consolidation",
    "contexts",
    "convert",
    "datasets",
    "diagnostics",
    "distribution",
    "evaluate",
    "evaluation",
    "export",
    "extract",
    "infer_task",
    "layers",
    "models",
    "optimizers",
    "stack",
    "superpose",
    "surgery",
    "task",
    "tuning",
]

_LAZY = ("benchmarks", "datasets", "tuning")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


if not TYPE_CHECKING:  # So that a type checker still reports unknown names.

    def __getattr__(name):
        # These need more than Keras and NumPy, so they are imported on first use.
        if name in _LAZY:
            import importlib

            return importlib.import_module(f"keras_psp.{name}")
        raise AttributeError(f"module 'keras_psp' has no attribute {name!r}")
