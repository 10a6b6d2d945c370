"""Superposed layers, each a Keras layer with a context, and layers with task rows."""

from keras_psp.layers.psp_complex_dense import PSPComplexDense
from keras_psp.layers.psp_conv2d import PSPConv2D
from keras_psp.layers.psp_dense import PSPDense
from keras_psp.layers.task_batch_normalization import TaskBatchNormalization
from keras_psp.layers.task_dense import TaskDense

__all__ = [
    "PSPComplexDense",
    "PSPConv2D",
    "PSPDense",
    "TaskBatchNormalization",
    "TaskDense",
]
