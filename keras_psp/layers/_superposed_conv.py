"""What all superposed convolutions add to the Keras layers that they replace."""

import math
from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import computes_by_products
from keras_psp._core.backend import convolve
from keras_psp._core.backend import is_worth_mapping
from keras_psp._core.backend import map_examples
from keras_psp._core.backend import take_rows
from keras_psp.contexts import Identity
from keras_psp.layers._patches import patches
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._superposed import add_up

CONTEXT_OVER = ("kernel", "channels")


class SuperposedConv(Superposed):
    """Mixin of the convolutions whose kernel holds one for each task.

    It stands before a Keras convolution among the bases.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        num_tasks: int | None = None,
        context: Any = "binary",
        context_over: str = "kernel",
        base: bool = False,
        bias_per_task: bool = False,
        rank: int | str | None = None,
        core: Any = None,
        bits: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        if context_over not in CONTEXT_OVER:
            raise ValueError(
                f"`context_over` must be one of {CONTEXT_OVER}. "
                f"Received: context_over={context_over!r}"
            )
        self.context_over = context_over
        self.set_context(context, num_tasks)
        is_over_channels = context is not None and context_over == "channels"
        if base and is_over_channels and self.groups > 1:
            raise ValueError(
                "Groups of filters have no kernel that is bound over channels, to add "
                f"a base to. Received: groups={self.groups}, base=True"
            )
        if (rank is not None or core is not None) and self.groups > 1:
            raise ValueError(
                "Groups of filters see other channels each, and can have no `rank` and "
                f"no `core`. Received: groups={self.groups}, rank={rank}, core={core}"
            )
        self.set_parts(base, bias_per_task, rank, core, bits)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                "The channel dimension of the inputs must be known. "
                f"Received: input_shape={input_shape}"
            )
        super().build(input_shape)
        if self.context_over == "kernel":
            channels = math.prod(self.kernel_size) * channels // self.groups
        self.build_context(channels)
        self.build_parts((self.filters,))

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.as_task(task, inputs)
        if self._binds_kernel:
            outputs = self._by_task(inputs, task)
        else:
            bound = self.bind_inputs(inputs, task.index)
            outputs = self._convolve(bound, self.kernel, ops.conv)
        if self.task_bias is not None:
            outputs = self.task_bias.add_to(outputs, task, self._channel_axis)
        elif self.bias is not None:
            shape = [1] * (self.rank + 2)
            shape[self._channel_axis] = self.filters
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        if self.activation is not None:
            outputs = self.activation(outputs)
        if self._binds_kernel and self.activation is keras.activations.linear:
            return outputs  # Which has masked them.
        return task.mask(outputs)

    def bind_inputs(self, inputs: Any, index: Any) -> Any:
        bound = ops.moveaxis(inputs, self._channel_axis, -1)
        bound = super().bind_inputs(bound, index)
        return ops.moveaxis(bound, -1, self._channel_axis)

    def kernel_rows(self, kernel: Any) -> Any:
        return ops.reshape(kernel, (-1, self.filters))

    def kernel_of_rows(self, rows: Any) -> Any:
        return ops.reshape(rows, self.kernel_shape)

    def inputs_met(self, inputs: Any) -> Any:
        return self._patches(inputs)

    def multiply_first(self, inputs: Any, rows: Any) -> Any:
        kernel = ops.reshape(rows, (*self.kernel_shape[:-1], rows.shape[-1]))
        return ops.moveaxis(self._convolve(inputs, kernel), self._channel_axis, -1)

    def multiply_second(self, products: Any, rows: Any) -> Any:
        outputs = super().multiply_second(products, rows)
        return ops.moveaxis(outputs, -1, self._channel_axis)

    def _by_task(self, inputs, task):
        """Convolves with the task's kernel if there is one task, and no more."""

        def one(task):
            # The kernel has far fewer numbers to mask than the outputs.
            return self._convolve(inputs, task.mask(self.task_kernel(task.index)))

        def bound():
            if self.context is None:
                return []
            if self.context_over == "kernel":
                patches = self.context.transform(self._patches(inputs), task.index)
                return [self._multiply(patches, self.kernel_rows(self.kernel))]
            bound = self.bind_inputs(inputs, task.index)
            return [self._convolve(bound, self.kernel)]

        def mixed():
            outputs = bound()
            if self.base is not None:
                outputs.append(self._convolve(inputs, self.base_kernel))
            outputs += self._multiply_own(inputs, task)
            return task.mask(add_up(outputs))

        def apart():
            outputs = map_examples(
                self._convolve, inputs, self._task_kernels(), task.index
            )
            return task.mask(outputs)

        if not self._kernels_are_smaller(inputs):
            return task.branch(one, mixed)
        is_each = not (task.is_soft or task.is_one or task.in_blocks)
        if is_each and self._is_pointwise and computes_by_products():
            # As fast as one product for one task: so one program, not two.
            return task.mask(self._multiply_each(inputs, task))
        return task.branch(one, mixed, apart)

    def _convolve(self, inputs, kernel, conv=convolve):
        padding = self.padding
        if padding == "causal":
            inputs, padding = ops.pad(inputs, self._compute_causal_padding()), "valid"
        return conv(
            inputs,
            ops.convert_to_tensor(kernel),
            self.strides,
            padding,
            self.data_format,
            self.dilation_rate,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "context_over": self.context_over}

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _binds_kernel(self):
        if self.base is not None or self.own_kernels:
            return True  # One convolution, with the sum of the kernels.
        # To bind the inputs with no context costs nothing.
        return self.context_over == "kernel" and not isinstance(self.context, Identity)

    def _kernels_are_smaller(self, inputs):
        """Whether all tasks' kernels have fewer numbers to bind than the patches.

        Whole kernels of the tasks' own are not multiplied with all inputs then.
        """
        if self.context is None and not getattr(self.low_rank, "is_full", False):
            return False
        if not is_worth_mapping(inputs):
            return False
        batch, *shape = self.compute_output_shape(inputs.shape)
        if not all(isinstance(size, int) for size in shape):
            return False
        batch = batch if isinstance(batch, int) else 128
        places = math.prod(shape) // self.filters
        return self.num_tasks <= batch and self.filters <= places

    def _task_kernels(self):
        """Returns the kernels that all tasks see, `(num_tasks, *kernel_shape)`."""
        index = ops.arange(self.num_tasks, dtype="int32")
        shape = (self.num_tasks, *self.kernel_shape)
        kernels = [
            ops.reshape(own.kernel_rows(index), shape) for own in self.own_kernels
        ]
        if self.context is not None:
            width = self.context.input_spec.axes[-1]
            rows = ops.reshape(self.kernel, (-1, width, self.filters))
            rows = ops.transpose(rows, (0, 2, 1))
            every = ops.broadcast_to(rows, (self.num_tasks, *rows.shape))
            every = self.context.unbind(every, index)
            kernels.append(ops.reshape(ops.transpose(every, (0, 1, 3, 2)), shape))
        if self.base is not None:
            kernels.append(self.base_kernel)
        return add_up(kernels)

    def _patches(self, inputs):
        """What each filter of each group looks at, `(batch, *places, groups, M)`."""
        met = patches(ops.moveaxis(inputs, self._channel_axis, -1), self)
        if self.groups == 1:
            return ops.expand_dims(ops.concatenate(met, axis=-1), -2)
        width = met[0].shape[-1] // self.groups
        met = [ops.reshape(x, (*ops.shape(x)[:-1], self.groups, width)) for x in met]
        return ops.concatenate(met, axis=-1)

    @property
    def _is_pointwise(self):
        return math.prod(self.kernel_size) == self.groups == 1

    def _multiply_each(self, inputs, task):
        """Convolves each example with its task's kernel of one place, all at once."""
        kernels = self._task_kernels()
        kernels = ops.reshape(kernels, (self.num_tasks, -1, self.filters))
        met = ops.squeeze(self._patches(inputs), -2)
        shape = ops.shape(met)
        met = ops.reshape(met, (shape[0], -1, shape[-1]))
        outputs = ops.matmul(met, take_rows(kernels, task.index))
        outputs = ops.reshape(outputs, (*shape[:-1], self.filters))
        return ops.moveaxis(outputs, -1, self._channel_axis)

    def _multiply(self, patches, flat):
        """Multiplies the patches with the kernel, each group with its filters."""
        shape = ops.shape(patches)[:-2]
        patches = ops.moveaxis(patches, -2, 0)
        patches = ops.reshape(patches, (self.groups, -1, patches.shape[-1]))
        kernel = ops.reshape(flat, (flat.shape[0], self.groups, -1))
        outputs = ops.matmul(patches, ops.moveaxis(kernel, 1, 0))
        outputs = ops.reshape(ops.moveaxis(outputs, 0, 1), (*shape, self.filters))
        return ops.moveaxis(outputs, -1, self._channel_axis)
