"""A kernel that all tasks share."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.private import replace_weight
from keras_psp.layers._few_bits import FIXED
from keras_psp.layers._few_bits import FewBits
from keras_psp.layers._few_bits import packed_size
from keras_psp.layers._few_bits import round_to_codes


class BaseKernel(FewBits):
    """Holds a kernel that all tasks share; Keras saves a child layer's weights.

    It is not trained: every task would move it for all the others. There are three
    forms of it: floats; codes of `bits` bits with a scale for each column of
    `kernel_rows()`; or, beside a superposed kernel that Keras has quantized, integers
    with a scale for each of its last dimension.

    Args:
        kernel_rows: The function `kernel_rows()` of the layer that it belongs to.
        kernel_of_rows: Its inverse.
        bits: Integer in [1, 8], or `None`.
        **kwargs: `keras.layers.Layer` arguments.
    """

    def __init__(
        self,
        kernel_rows: Callable,
        kernel_of_rows: Callable,
        bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._to_rows = kernel_rows
        self._of_rows = kernel_of_rows
        self.bits = bits

    def build(self, shape: Any) -> None:
        self._shape = tuple(shape)
        rows = self._to_rows(keras.KerasTensor(self._shape))
        self._shapes = {"codes": tuple(rows.shape)}
        if self.bits is not None:
            self.add_codes()
        elif self.quantization_mode is None:
            self._kernel = self.add_weight(
                name="kernel", shape=shape, initializer="zeros", trainable=False
            )
        else:
            self._add_integers()

    @property
    def kernel(self) -> Any:
        """The kernel; a tensor of it, if it is stored as integers."""
        if self.bits is not None:
            packed = ops.convert_to_tensor(self.codes)
            rows = ops.multiply(self.decode("codes", packed), self.scale)
            return ops.cast(self._of_rows(rows), self.compute_dtype)
        if self.quantization_mode is None:
            return self._kernel
        rows = ops.convert_to_tensor(self._kernel)
        if self.quantization_mode == "int4":
            rows = keras.quantizers.unpack_int4(rows, self._num_rows, axis=0)
        kernel = ops.divide(ops.cast(rows, self.scale.dtype), self.scale)
        return ops.cast(ops.reshape(kernel, self._shape), self.compute_dtype)

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Does nothing: the layer that it belongs to calls `round_to()`."""

    def round_to(self, policy: Any) -> None:
        """Turns the kernel into integers, for a quantized dtype policy."""
        rows = ops.reshape(self._kernel, (self._num_rows, self._shape[-1]))
        most = {"int8": 127, "int4": 7}[policy.quantization_mode]
        rows, scale = keras.quantizers.abs_max_quantize(
            rows, axis=0, value_range=(-most, most), to_numpy=True
        )
        if policy.quantization_mode == "int4":
            rows = keras.quantizers.pack_int4(ops.convert_to_tensor(rows), axis=0)[0]
        old, self.dtype_policy = self._kernel, policy
        replace_weight(self, old, self._add_integers)
        self._kernel.assign(rows)
        self.scale.assign(scale)

    def set_codes(self, codes: Any, scale: Any) -> None:
        """Sets the kernel, `(codes - (2**bits - 1) / 2) * scale`.

        Args:
            codes: Integer array of shape `(M, N)`, in the order of `kernel_rows()`.
            scale: Float array of shape `(N,)`.

        Raises:
            TypeError: `codes` are not integers.
            ValueError: See `assign_codes()`. Nothing has changed then.
        """
        self.assign_codes(codes=codes, scale=scale)

    def add_codes(self) -> None:
        m, n = self._shapes["codes"]
        self.codes = self.add_weight(
            name="kernel",
            shape=(packed_size(m * n, self._few),),
            initializer="zeros",
            dtype="uint8",
            **FIXED,
        )
        self.scale = self.add_weight(
            name="scale", shape=(n,), initializer="zeros", dtype="float32", **FIXED
        )

    def round_values(self, bits: int) -> dict[str, np.ndarray]:
        rows = ops.convert_to_numpy(self._to_rows(ops.convert_to_tensor(self._kernel)))
        codes, scale = round_to_codes(rows, bits, axis=0)
        return {"codes": codes, "scale": scale}

    @property
    def _num_rows(self):
        return math.prod(self._shape[:-1])

    def _float_names(self) -> list[str]:
        return ["_kernel"]

    def _code_names(self) -> list[str]:
        return ["codes", "scale"]

    def _add_integers(self):
        rows = self._num_rows
        if self.quantization_mode == "int4":
            rows = -(-rows // 2)  # Two numbers share a byte.
        self._kernel = self.add_weight(
            name="kernel",
            shape=(rows, self._shape[-1]),
            initializer="zeros",
            dtype="int8",
            **FIXED,
        )
        self.scale = self.add_weight(
            name="scale", shape=(1, self._shape[-1]), initializer="ones", **FIXED
        )
