"""A bias for each task."""

import keras
from keras import ops

from keras_psp.contexts.task_index import is_soft
from keras_psp.layers.task_rows import TaskRows


class TaskBias(TaskRows, keras.layers.Layer):
    """Holds the weight, for a layer that is given a child keeps it in its files.

    Args:
        num_tasks: Positive integer, the number of tasks.
        initializer: Keras initializer of one task's bias.
        regularizer: Keras regularizer, or `None`.
        constraint: Keras constraint, or `None`.
        **kwargs: `keras.layers.Layer` arguments.
    """

    def __init__(
        self, num_tasks, initializer, regularizer=None, constraint=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self._options = initializer, regularizer, constraint

    def build(self, shape):
        initializer, regularizer, constraint = self._options
        self.add_rows(
            "bias", shape, initializer, regularizer=regularizer, constraint=constraint
        )

    def add_to(self, outputs, index, axis=-1):
        """Adds each example's bias along an `axis` of the outputs.

        Args:
            outputs: Float tensor of shape `(batch, ...)`.
            index: Integer or int32 tensor of shape `()` or `(batch,)`; or weights
                `(batch, num_tasks)`, to mix the biases with.
            axis: Integer, the dimension of as many numbers as the bias has.

        Returns:
            Tensor like `outputs`.
        """
        rows = ops.cast(self.bias, outputs.dtype)
        if is_soft(index):
            rows = ops.matmul(ops.cast(index, outputs.dtype), rows)
        else:
            rows = ops.take(rows, index, axis=0)
        shape = [1] * len(outputs.shape)
        shape[axis] = self.bias.shape[-1]
        if len(rows.shape) == 2:
            shape[0] = -1
        return ops.add(outputs, ops.reshape(rows, shape))
