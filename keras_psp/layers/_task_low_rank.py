"""A kernel of low rank for each task."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.checks import check_integer
from keras_psp._core.task import Task
from keras_psp.layers._task_rows import TaskRows


class TaskLowRank(TaskRows, keras.layers.Layer):
    """Holds the factors `A_k`, `(M, rank)`, and `B_k`, `(rank, N)`, of each task.

    As in LoRA, `B_k` starts as zero, so that a new `A_k B_k` changes nothing.

    Args:
        num_tasks: Positive integer, the number of tasks.
        rank: Positive integer, at most the smaller of M and N.
        **kwargs: `keras.layers.Layer` arguments.

    Reference:
        [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """

    first: Any
    second: Any

    def __init__(self, num_tasks: int, rank: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self.rank = check_integer("rank", rank)

    def build(self, shape: Any) -> None:
        m, n = shape
        if self.rank > min(m, n):
            raise ValueError(
                f"`rank` must be at most {min(m, n)} for kernels of {m} inputs and {n} "
                f"outputs. Received: rank={self.rank}"
            )
        normal = keras.initializers.RandomNormal(stddev=m**-0.5)
        self.add_rows("first", (m, self.rank), normal)
        self.add_rows("second", (self.rank, n), keras.initializers.Zeros())

    def kernel_rows(self, index: Any) -> Any:
        """Returns `A_k B_k`, for an index; of all tasks, for an index for each."""
        return ops.matmul(take_rows(self.first, index), take_rows(self.second, index))

    def multiply(self, inputs: Any, task: Task, first: Any, second: Any) -> Any:
        """Computes `(x A_k) B_k`; soft weights mix the tasks' products.

        Args:
            inputs: The layer's inputs.
            task: Their `Task`.
            first: Function of the inputs and of rows `(M, n)` in place of the kernel's.
                It returns their product, `(batch, ..., n)`.
            second: Function of such a product and of rows `(n, N)`. It returns what has
                the shape of the layer's outputs.
        """
        a, b = (ops.cast(bank, inputs.dtype) for bank in (self.first, self.second))
        if task.is_one:
            inner = first(inputs, take_rows(a, task.index))
            return second(inner, take_rows(b, task.index))
        # The products of all tasks, and zeros in place of those of the others.
        columns = self.num_tasks * self.rank
        a = ops.reshape(ops.transpose(a, (1, 0, 2)), (-1, columns))
        inner = first(inputs, a)
        shares = task.index if task.is_soft else ops.one_hot(task.index, self.num_tasks)
        shares = ops.repeat(ops.cast(shares, inner.dtype), self.rank, axis=1)
        middle = (1,) * (len(inner.shape) - 2)
        inner = ops.multiply(inner, ops.reshape(shares, (-1, *middle, columns)))
        return second(inner, ops.reshape(b, (columns, -1)))
