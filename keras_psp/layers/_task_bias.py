"""A bias for each task."""

import keras
from keras import ops

from keras_psp._core.task import is_soft
from keras_psp.layers._task_rows import TaskRows


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

    def add_to(self, outputs, index, axis=None):
        """Adds to each example's outputs its task's bias; see `add_bias()`."""
        return add_bias(outputs, self.bias, index, axis)


def add_bias(outputs, bias, index, axis=None):
    """Adds to each example's outputs its task's bias.

    Args:
        outputs: Float tensor of shape `(batch, ...)`.
        bias: Float tensor of shape `(num_tasks, ...)`.
        index: Integer or int32 tensor of shape `()` or `(batch,)`; or weights
            `(batch, num_tasks)`, to mix the biases with.
        axis: Integer, the outputs' dimension along which a bias of one dimension goes.
            Defaults to their last ones.

    Returns:
        Tensor like `outputs`.
    """
    rows = ops.cast(bias, outputs.dtype)
    if is_soft(index):
        rows = ops.tensordot(ops.cast(index, outputs.dtype), rows, axes=1)
    else:
        rows = ops.take(rows, index, axis=0)
    one = len(rows.shape) < len(bias.shape)
    shape = list(bias.shape[1:])
    if axis is not None:
        shape += [1] * (len(outputs.shape) - 1 - axis % len(outputs.shape))
    shape = [1] * (len(outputs.shape) - 1 - len(shape)) + shape
    return ops.add(outputs, ops.reshape(rows, (1 if one else -1, *shape)))
