"""Superposed layers, each a Keras layer with contexts, and layers with task rows."""

from keras_psp.layers.psp_complex_dense import PSPComplexDense
from keras_psp.layers.psp_conv1d import PSPConv1D
from keras_psp.layers.psp_conv2d import PSPConv2D
from keras_psp.layers.psp_conv3d import PSPConv3D
from keras_psp.layers.psp_dense import PSPDense
from keras_psp.layers.psp_einsum_dense import PSPEinsumDense
from keras_psp.layers.psp_group_query_attention import PSPGroupQueryAttention
from keras_psp.layers.psp_multi_head_attention import PSPMultiHeadAttention
from keras_psp.layers.task_batch_normalization import TaskBatchNormalization
from keras_psp.layers.task_dense import TaskDense
from keras_psp.layers.task_depthwise_conv1d import TaskDepthwiseConv1D
from keras_psp.layers.task_depthwise_conv2d import TaskDepthwiseConv2D
from keras_psp.layers.task_embedding import TaskEmbedding
from keras_psp.layers.task_layer_normalization import TaskLayerNormalization
from keras_psp.layers.task_reversible_embedding import TaskReversibleEmbedding
from keras_psp.layers.task_rms_normalization import TaskRMSNormalization

__all__ = [
    "PSPComplexDense",
    "PSPConv1D",
    "PSPConv2D",
    "PSPConv3D",
    "PSPDense",
    "PSPEinsumDense",
    "PSPGroupQueryAttention",
    "PSPMultiHeadAttention",
    "TaskBatchNormalization",
    "TaskDense",
    "TaskDepthwiseConv1D",
    "TaskDepthwiseConv2D",
    "TaskEmbedding",
    "TaskLayerNormalization",
    "TaskRMSNormalization",
    "TaskReversibleEmbedding",
]
