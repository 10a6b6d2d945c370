"""What depthwise convolutions with a kernel for each task have in common."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import computes_by_products
from keras_psp._core.backend import depthwise_convolve
from keras_psp._core.backend import take_rows
from keras_psp.layers._few_bits import FIXED
from keras_psp.layers._few_bits import QUANTIZATION
from keras_psp.layers._few_bits import FewBits
from keras_psp.layers._few_bits import check_bits
from keras_psp.layers._few_bits import packed_size
from keras_psp.layers._few_bits import round_to_codes
from keras_psp.layers._patches import patches
from keras_psp.layers._task_rows import TaskRows

_ZEROS = keras.initializers.Zeros()


class TaskDepthwiseConv(TaskRows, FewBits):
    """Mixin of the depthwise convolutions with a kernel for each task.

    It stands before a Keras depthwise convolution among the bases. In few bits, the
    numbers of each filter have one scale.
    """

    kernel: Any
    kernel_scale: Any = None

    def __init__(
        self, kernel_size: Any, num_tasks: int, bits: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(kernel_size, **kwargs)
        self.set_num_tasks(num_tasks)
        self.bits = check_bits(bits)

    def build(self, input_shape: Any) -> None:
        channels = input_shape[self._channel_axis]
        if channels is None:
            raise ValueError(
                "The channel dimension of the inputs must be known. "
                f"Received: input_shape={input_shape}"
            )
        self.compute_output_shape(input_shape)  # Which raises if there is none.
        shape = (*self.kernel_size, channels, self.depth_multiplier)
        self._shapes = {"kernel": shape}
        if self.bits is not None:
            self.add_codes()
        else:
            self.add_rows(
                "kernel",
                shape,
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
        banks = self._banks()

        def one(task):
            return depthwise_convolve(
                inputs,
                self._kernels(*banks, task.index),
                self.strides,
                self.padding,
                self.data_format,
                self.dilation_rate,
            )

        def product(task):
            # What a filter meets at each of its places, times that place's numbers.
            *_, channels, multiplier = self._shapes["kernel"]
            met = patches(ops.moveaxis(inputs, self._channel_axis, -1), self)
            numbers = ops.reshape(
                self._kernels(*banks, task.index),
                (-1, len(met), *(1,) * self.rank, channels, multiplier),
            )
            outputs = sum(
                ops.expand_dims(x, -1) * numbers[:, i] for i, x in enumerate(met)
            )
            shape = (*ops.shape(outputs)[:-2], channels * multiplier)
            return ops.moveaxis(ops.reshape(outputs, shape), -1, self._channel_axis)

        if computes_by_products():
            outputs = product(task)  # Of one task and of several: one program, not two.
        else:
            outputs = task.branch(one, lambda: product(task))
        if self.bias is not None:
            rows = task.rows(self.bias, outputs, self._channel_axis)
            outputs = ops.add(outputs, rows)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return task.mask(outputs)

    def kernels(self) -> np.ndarray:
        """Returns the kernels of all tasks, as floats."""
        index = np.arange(self.num_tasks, dtype="int32")
        return ops.convert_to_numpy(self._kernels(*self._banks(), index))

    @property
    def plain_weights(self) -> list:
        first = self.kernel if self.bits is None else _Kernels(self)
        return [first] if self.bias is None else [first, self.bias]

    def set_new_row(self, weight: Any, row: Any) -> None:
        if isinstance(weight, _Kernels):
            codes, scale = self._round(row[np.newaxis], self._few)
            self.set_new_codes(kernel=codes[0], kernel_scale=scale[0])
        else:
            super().set_new_row(weight, row)

    def add_codes(self) -> None:
        shape, new = self._shapes["kernel"], self._new_rows.pop("kernel", None)
        size = packed_size(int(np.prod(shape)), self._few)
        self.add_rows("kernel", (size,), _ZEROS, dtype="uint8", **FIXED)
        # Of new tasks zero, and so are their kernels.
        self.add_rows("kernel_scale", shape[-2:], _ZEROS, dtype="float32", **FIXED)
        if new is not None:
            self.set_new_row(_Kernels(self), new)

    def round_values(self, bits: int) -> dict[str, np.ndarray]:
        codes, scale = self._round(ops.convert_to_numpy(self.kernel), bits)
        return {"kernel": codes, "kernel_scale": scale}

    def can_quantize(self, mode: Any) -> bool:
        """Whether `quantize()` can round the layer's kernels."""
        return mode in QUANTIZATION and self.bits is None

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Rounds the kernels to 8 bits (`"int8"`) or 4 (`"int4"`).

        Raises:
            NotImplementedError: The mode is another, or they are rounded already.
        """
        name = mode if config is None else config.mode
        super().quantize(name)
        self.round_to_bits(QUANTIZATION[name])

    def get_config(self) -> dict[str, Any]:
        bits = {} if self.bits is None else {"bits": self.bits}
        return {**super().get_config(), **bits}

    def _code_names(self) -> list[str]:
        return ["kernel", "kernel_scale"]

    def _round(self, kernels, bits):
        return round_to_codes(kernels, bits, tuple(range(1, 1 + self.rank)))

    def _banks(self) -> tuple[Any, Any]:
        """What the kernels are computed from."""
        kernel = ops.convert_to_tensor(self.kernel)
        if self.bits is None:
            return kernel, None
        return kernel, ops.convert_to_tensor(self.kernel_scale)

    def _kernels(self, kernel, scale, index):
        """Returns the kernels of tasks, for an index or for an index for each."""
        rows = take_rows(kernel, index)
        if scale is None:
            return rows
        scale = take_rows(scale, index)
        places = tuple(range(-3, -3 - self.rank, -1))
        numbers = self.decode("kernel", rows) * ops.expand_dims(scale, places)
        return ops.cast(numbers, self.compute_dtype)

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1


class _Kernels:
    """The kernels of a layer in few bits, as if they were a weight of floats."""

    def __init__(self, layer: TaskDepthwiseConv) -> None:
        self._layer = layer

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._layer.kernels().astype(dtype or "float32")

    def __getitem__(self, task: int) -> np.ndarray:
        return np.asarray(self)[task]

    def assign(self, values: np.ndarray) -> None:
        """Rounds the kernels of tasks that change; the others keep their codes."""
        layer, rows = self._layer, np.asarray(self) != values
        changed = np.flatnonzero(rows.reshape(len(rows), -1).any(axis=1))
        codes = layer.get_codes()
        new = layer._round(values[changed], layer._few)
        for name, each in zip(layer._code_names(), new, strict=True):
            codes[name][changed] = each
        layer.assign_codes(**codes)
