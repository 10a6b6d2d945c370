"""What depthwise convolutions with a kernel for each task have in common."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import depthwise_convolve
from keras_psp._core.backend import multiplies_depthwise
from keras_psp._core.backend import take_rows
from keras_psp.layers._patches import patches
from keras_psp.layers._task_rows import TaskRows


class TaskDepthwiseConv(TaskRows):
    """Mixin of the depthwise convolutions with a kernel for each task.

    It stands before a Keras depthwise convolution among the bases.
    """

    def __init__(self, kernel_size: Any, num_tasks: int, **kwargs: Any) -> None:
        super().__init__(kernel_size, **kwargs)
        self.set_num_tasks(num_tasks)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                "The channel dimension of the inputs must be known. "
                f"Received: input_shape={input_shape}"
            )
        self.compute_output_shape(input_shape)  # Which raises if there is none.
        self.add_rows(
            "kernel",
            (*self.kernel_size, channels, self.depth_multiplier),
            self.depthwise_initializer,
            regularizer=self.depthwise_regularizer,
            constraint=self.depthwise_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.add_rows(
                "bias",
                (channels * self.depth_multiplier,),
                self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.InputSpec(
            ndim=self.rank + 2, axes={self._channel_axis: channels}
        )

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.parse_task(task, inputs)
        kernel = ops.convert_to_tensor(self.kernel)

        def one(task):
            if multiplies_depthwise():
                return product(task)
            return depthwise_convolve(
                inputs,
                take_rows(kernel, task.index),
                self.strides,
                self.padding,
                self.data_format,
                self.dilation_rate,
            )

        def product(task):
            # What a filter meets at each of its places, times that place's numbers.
            *_, channels, multiplier = kernel.shape
            met = patches(ops.moveaxis(inputs, self._channel_axis, -1), self)
            numbers = ops.reshape(
                take_rows(kernel, task.index),
                (-1, len(met), *(1,) * self.rank, channels, multiplier),
            )
            outputs = sum(
                ops.expand_dims(x, -1) * numbers[:, i] for i, x in enumerate(met)
            )
            shape = (*ops.shape(outputs)[:-2], channels * multiplier)
            return ops.moveaxis(ops.reshape(outputs, shape), -1, self._channel_axis)

        outputs = task.branch(one, lambda: product(task))
        if self.bias is not None:
            rows = task.rows(self.bias, outputs, self._channel_axis)
            outputs = ops.add(outputs, rows)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return task.mask(outputs)

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1
