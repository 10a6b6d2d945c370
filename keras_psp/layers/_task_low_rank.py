"""A kernel of low rank for each task, or a whole one."""

import math
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

FULL = "full"
_ZEROS = keras.initializers.Zeros()
# From so many tasks on, factors are looked up for each example of a mixed batch. Fewer
# are all multiplied with it in one product. Whole kernels always are: those of each
# example would take far more memory than those of each task.
_LOOK_UP_FROM = 32


def check_rank(rank: Any) -> int | str:
    """Returns `rank` if it is a positive integer or `"full"`.

    Raises:
        TypeError: It is neither.
        ValueError: It is an integer that is not positive.
    """
    if isinstance(rank, str) and rank == FULL:
        return rank
    return check_integer("rank", rank)


class TaskLowRank(TaskRows, FewBits):
    """Holds the factors `A_k`, `(M, rank)`, and `B_k`, `(rank, N)`, of each task.

    As in LoRA, `B_k` starts as zero, so that a new `A_k B_k` changes nothing. With
    `rank="full"`, each task has one kernel `(M, N)` instead, zeros at first. In few
    bits, `A_k[:, i] B_k[i, :]` has one scale; so has each column of a whole kernel.

    Args:
        num_tasks: Positive integer, the number of tasks.
        rank: Positive integer, at most the smaller of M and N, or `"full"`.
        bits: Integer in [1, 8], how many bits each number is stored in, or `None`.
        **kwargs: `keras.layers.Layer` arguments.

    Reference:
        [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """

    first: Any
    second: Any = None
    scale: Any = None

    def __init__(
        self, num_tasks: int, rank: int | str, bits: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self.rank = check_rank(rank)
        self.bits = bits

    def build(self, shape: Any) -> None:
        m, n = shape
        if isinstance(self.rank, str):
            self._shapes = {"first": (m, n)}
        elif self.rank > min(m, n):
            raise ValueError(
                f"`rank` must be at most {min(m, n)} for kernels of {m} inputs and {n} "
                f"outputs. Received: rank={self.rank}"
            )
        else:
            self._shapes = {"first": (m, self.rank), "second": (self.rank, n)}
        if self.bits is not None:
            self.add_codes()
            return
        normal = keras.initializers.RandomNormal(stddev=m**-0.5)
        self.add_rows(
            "first", self._shapes["first"], _ZEROS if self.is_full else normal
        )
        if not self.is_full:
            self.add_rows("second", self._shapes["second"], _ZEROS)

    @property
    def is_full(self) -> bool:
        """Whether each task has one whole kernel in place of two factors."""
        return self.rank == FULL

    def factors(self, index: Any = None) -> tuple[Any, Any]:
        """Returns `A_k`, `B_k` of tasks; `B_k` is `None` if `A_k` is a whole kernel.

        Args:
            index: Integer or int32 tensor of shape `()` or `(n,)`, or `None` for all.
        """
        banks = [self.first, self.second, self.scale]
        if index is not None:
            banks = [bank if bank is None else take_rows(bank, index) for bank in banks]
        first, second, scale = banks
        if self.bits is None:
            return first, second
        first = self.decode("first", first)
        if second is None:
            first = ops.multiply(first, ops.expand_dims(scale, -2))
        else:
            # Both near the size of the layer's numbers, for floats of 16 bits.
            first = ops.multiply(first, 2.0**-self.bits)
            scale = ops.expand_dims(ops.multiply(scale, 2.0**self.bits), -1)
            second = ops.multiply(self.decode("second", second), scale)
            second = ops.cast(second, self.compute_dtype)
        return ops.cast(first, self.compute_dtype), second

    def kernel_rows(self, index: Any) -> Any:
        """Returns `A_k B_k`, for an index; of all tasks, for an index for each."""
        first, second = self.factors(index)
        return first if second is None else ops.matmul(first, second)

    def multiply(self, inputs: Any, task: Task, layer: Any) -> Any:
        """Computes `(x A_k) B_k`; soft weights mix the tasks' products.

        Args:
            inputs: The layer's inputs.
            task: Their `Task`.
            layer: The `Superposed` layer, which multiplies with rows in place of its
                kernel's.

        Returns:
            Tensor of the shape of the layer's outputs.
        """
        is_few = self.num_tasks < _LOOK_UP_FROM or self.is_full
        if task.is_soft or task.is_one or is_few:
            return self._multiply_every(inputs, task, layer)
        # Each example with its own task's factors: as long for any number of tasks.
        met = layer.inputs_met(inputs)
        batch, *places, _, width = ops.shape(met)
        products = ops.reshape(met, (batch, math.prod(places), width))
        for rows in self.factors(task.index):
            products = ops.matmul(products, ops.cast(rows, inputs.dtype))
        products = ops.reshape(products, (batch, *places, products.shape[-1]))
        return layer.multiply_second(products, None)

    def _multiply_every(self, inputs: Any, task: Task, layer: Any) -> Any:
        """Multiplies with the factors of all tasks, or with those of the only one."""
        a: Any
        a, b = (
            bank if bank is None else ops.cast(bank, inputs.dtype)
            for bank in self.factors(task.index if task.is_one else None)
        )
        if task.is_one:
            return layer.multiply_second(layer.multiply_first(inputs, a), b)
        # The products of all tasks, and zeros in place of those of the others.
        each = a.shape[-1]
        columns = self.num_tasks * each
        a = ops.reshape(ops.transpose(a, (1, 0, 2)), (-1, columns))
        inner = layer.multiply_first(inputs, a)
        shape = ops.shape(inner)[:-1]
        shares = task.index if task.is_soft else ops.one_hot(task.index, self.num_tasks)
        shares = ops.cast(shares, inner.dtype)
        shares = ops.reshape(shares, (-1, *(1,) * (len(shape) - 1), self.num_tasks, 1))
        inner = ops.reshape(inner, (*shape, self.num_tasks, each))
        inner = ops.multiply(inner, shares)
        if b is None:
            return layer.multiply_second(ops.sum(inner, axis=-2), None)
        inner = ops.reshape(inner, (*shape, columns))
        return layer.multiply_second(inner, ops.reshape(b, (columns, -1)))

    def set_codes(self, first: Any, second: Any, scale: Any) -> None:
        """Sets the numbers of all tasks, in `(code - (2**bits - 1) / 2) * scale`.

        Args:
            first: Integer array of shape `(K, M, rank)`, or `(K, M, N)`.
            second: Integer array of shape `(K, rank, N)`; `None` for `rank="full"`.
            scale: Float array of shape `(K, rank)`, of the products of columns of the
                first with rows of the second; or `(K, N)`, of columns.

        Raises:
            TypeError: Codes are not integers.
            ValueError: A shape is wrong, a code is outside `[0, 2**bits - 1]`, a scale
                is not finite, or the layer has no codes. Nothing has changed then.
        """
        if self.is_full and second is not None:
            raise ValueError(
                '`second` must be `None` for rank="full". Received: an array'
            )
        given = {} if self.is_full else {"second": second}
        self.assign_codes(first=first, **given, scale=scale)

    def get_codes(self) -> dict[str, Any]:
        return {"second": None, **super().get_codes()}

    def add_codes(self) -> None:
        for attribute, shape in self._shapes.items():
            size = packed_size(int(np.prod(shape)), self._few)
            self.add_rows(attribute, (size,), _ZEROS, dtype="uint8", **FIXED)
        # Of new tasks zero, and so are their kernels.
        width = self._shapes["first"][-1]
        self.add_rows("scale", (width,), _ZEROS, dtype="float32", **FIXED)

    def round_values(self, bits: int) -> dict[str, np.ndarray]:
        first, scale = round_to_codes(ops.convert_to_numpy(self.first), bits, axis=1)
        if self.is_full:
            return {"first": first, "scale": scale}
        second, rows = round_to_codes(ops.convert_to_numpy(self.second), bits, axis=2)
        return {"first": first, "second": second, "scale": scale * rows}

    def _code_names(self) -> list[str]:
        return [*self._shapes, "scale"]
