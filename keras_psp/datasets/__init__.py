"""Task sequences: tf.data pipelines that turn labelled sources into many tasks."""

from keras_psp.datasets.incremental import incremental
from keras_psp.datasets.permuted import permuted
from keras_psp.datasets.rotating import rotating
from keras_psp.datasets.sources import SOURCES
from keras_psp.datasets.sources import Source
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence

__all__ = [
    "SOURCES",
    "Source",
    "TaskSequence",
    "incremental",
    "load_source",
    "permuted",
    "rotating",
]
