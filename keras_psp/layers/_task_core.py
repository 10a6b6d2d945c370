"""A small core for each task, between two factors that all tasks share."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.checks import check_integer
from keras_psp._core.task import Task
from keras_psp.layers._few_bits import FIXED
from keras_psp.layers._few_bits import FewBits
from keras_psp.layers._few_bits import packed_size
from keras_psp.layers._few_bits import round_to_codes
from keras_psp.layers._task_rows import TaskRows

_ZEROS = keras.initializers.Zeros()


def check_core(core: Any) -> tuple[int, int]:
    """Returns `core` as a pair of positive integers; one integer stands for both.

    Raises:
        TypeError: It is neither an integer nor a pair of integers.
        ValueError: It has another length, or a number is not positive.
    """
    if not isinstance(core, (list, tuple)):
        core = (core, core)
    if len(core) != 2:
        raise ValueError(
            "`core` must be a positive integer or a pair of these. "
            f"Received: core={core}"
        )
    first, second = (check_integer("core", size) for size in core)
    return first, second


class TaskCore(TaskRows, FewBits):
    """Holds `A`, `(M, R_in)`, `V^T`, `(R_out, N)`, and a core `(R_in, R_out)` a task.

    Task k sees `A core_k V^T`. All tasks share and train `A` and `V`, which start
    random. A core starts as zero, so that a new part changes nothing.

    Args:
        num_tasks: Positive integer, the number of tasks.
        core: Pair of positive integers `(R_in, R_out)`, at most `(M, N)`; or an
            integer for both.
        bits: Integer in [1, 8], how many bits each number is stored in, or `None`.
        **kwargs: `keras.layers.Layer` arguments.
    """

    first: Any
    second: Any
    core: Any
    first_scale: Any
    second_scale: Any
    core_scale: Any

    def __init__(
        self, num_tasks: int, core: Any, bits: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self.size = check_core(core)
        self.bits = bits

    def build(self, shape: Any) -> None:
        m, n = shape
        r_in, r_out = self.size
        if r_in > m or r_out > n:
            raise ValueError(
                f"`core` must be at most {(m, n)} for kernels of {m} inputs and {n} "
                f"outputs. Received: core={self.size}"
            )
        self._shapes = {"first": (m, r_in), "second": (r_out, n), "core": self.size}
        if self.bits is not None:
            self.add_codes()
            return
        for name, stddev in (("first", m**-0.5), ("second", r_out**-0.5)):
            weight = self.add_weight(
                name=name,
                shape=self._shapes[name],
                initializer=keras.initializers.RandomNormal(stddev=stddev),
            )
            setattr(self, name, weight)
        self.add_rows("core", self.size, _ZEROS)

    def factors(self, index: Any = None) -> tuple[Any, Any, Any]:
        """Returns `A`, the cores of tasks, and `V^T`.

        Args:
            index: Integer or int32 tensor of shape `()` or `(n,)`, or `None` for all.
        """

        def rows(bank: Any) -> Any:
            return bank if index is None else take_rows(bank, index)

        core = rows(self.core)
        if self.bits is None:
            return self.first, core, self.second
        core_scale = rows(self.core_scale)
        decoded = (
            ops.multiply(self.decode(name, packed), scale)
            for name, packed, scale in (
                ("first", ops.convert_to_tensor(self.first), self.first_scale),
                ("core", ops.convert_to_tensor(core), core_scale[..., None, None]),
                (
                    "second",
                    ops.convert_to_tensor(self.second),
                    ops.expand_dims(self.second_scale, -1),
                ),
            )
        )
        first, core, second = (ops.cast(x, self.compute_dtype) for x in decoded)
        return first, core, second

    def kernel_rows(self, index: Any) -> Any:
        """Returns `A core_k V^T`, for an index; of all tasks, for an index for each."""
        first, core, second = self.factors(index)
        return ops.matmul(ops.matmul(first, core), second)

    def multiply(self, inputs: Any, task: Task, layer: Any) -> Any:
        """Computes `((x A) core_k) V^T`; see `TaskLowRank.multiply()`."""
        first, second = layer.multiply_first, layer.multiply_second
        index = task.index if task.is_one else None
        a, core, v = (ops.cast(bank, inputs.dtype) for bank in self.factors(index))
        inner = first(inputs, a)
        if task.is_one:
            return second(ops.matmul(inner, core), v)
        is_flat = len(inner.shape) == 2
        if is_flat:
            inner = ops.expand_dims(inner, 1)
        inner = ops.matmul(inner, task.rows(core, inner))
        return second(ops.squeeze(inner, 1) if is_flat else inner, v)

    def set_codes(
        self,
        first: Any,
        second: Any,
        core: Any,
        first_scale: Any,
        second_scale: Any,
        core_scale: Any,
    ) -> None:
        """Sets all numbers, in `(code - (2**bits - 1) / 2) * scale`.

        Args:
            first: Integer array of shape `(M, R_in)`.
            second: Integer array of shape `(R_out, N)`.
            core: Integer array of shape `(K, R_in, R_out)`.
            first_scale: Float array of shape `(R_in,)`, of columns.
            second_scale: Float array of shape `(R_out,)`, of rows.
            core_scale: Float array of shape `(K,)`.

        Raises:
            TypeError: Codes are not integers.
            ValueError: A shape is wrong, a code is outside `[0, 2**bits - 1]`, a scale
                is not finite, or the layer has no codes. Nothing has changed then.
        """
        self.assign_codes(
            first=first,
            second=second,
            core=core,
            first_scale=first_scale,
            second_scale=second_scale,
            core_scale=core_scale,
        )

    def add_codes(self) -> None:
        r_in, r_out = self.size
        sizes = {
            name: packed_size(int(np.prod(shape)), self._few)
            for name, shape in self._shapes.items()
        }
        for name, size, dtype in (
            ("first", sizes["first"], "uint8"),
            ("second", sizes["second"], "uint8"),
            ("first_scale", r_in, "float32"),
            ("second_scale", r_out, "float32"),
        ):
            weight = self.add_weight(
                name=name, shape=(size,), initializer="zeros", dtype=dtype, **FIXED
            )
            setattr(self, name, weight)
        self.add_rows("core", (sizes["core"],), _ZEROS, dtype="uint8", **FIXED)
        # Of new tasks zero, and so are their kernels.
        self.add_rows("core_scale", (), _ZEROS, dtype="float32", **FIXED)

    def round_values(self, bits: int) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for name, axis in (("first", 0), ("second", 1), ("core", (1, 2))):
            floats = ops.convert_to_numpy(getattr(self, name))
            values[name], values[f"{name}_scale"] = round_to_codes(floats, bits, axis)
        return values

    def _code_names(self) -> list[str]:
        return [name + end for end in ("", "_scale") for name in self._shapes]
