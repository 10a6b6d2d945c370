"""Rows of Hadamard matrices: signs that do not interfere at all."""

from typing import Any

import keras
import numpy as np

from keras_psp.contexts import _hadamard_matrix as hadamard_matrix
from keras_psp.contexts import _random_numbers as random_numbers
from keras_psp.contexts.binary import Binary


@keras.saving.register_keras_serializable(package="keras_psp")
class Hadamard(Binary):
    """Rows of a Hadamard matrix: sign vectors exactly orthogonal to each other.

    ```
    C_k = diag(c_k),  c_k in {-1, +1}^M,  <c_j, c_k> = 0 for j != k
    ```

    A matrix of order M is at hand if M is a power of two, q + 1 or 2 (q + 1) for some
    prime powers q (Paley), or a product of such orders: 784 = 28 * 28 is one. For any
    other M the rows of the nearest matrix are cut off at M, or begun again, and
    `max_overlap(M)` says how far from orthogonal that may leave them.

    Args:
        num_tasks: Positive integer, the number of tasks, at most the matrix' order,
            `max_num_tasks(M)`.
        seed: Non-negative integer, of the order in which the rows are used.
        learnable: Boolean. If `True` the signs are the initial values of real numbers
            that are trained.
        storage: `"bytes"` or `"bits"`.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example; or weights of shape
            `(batch, num_tasks)`, to mix the signs with.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's.

    Raises:
        ValueError: When built, if there are more tasks than rows.

    Example:

    >>> import keras, keras_psp
    >>> context = keras_psp.contexts.Hadamard(num_tasks=784)
    >>> both = context(context(keras.ops.ones((1, 784)), 5), 700)
    >>> float(keras.ops.sum(both))
    0.0
    >>> context.max_num_tasks(784), context.max_overlap(784), context.max_overlap(10)
    (784, 0.0, 0.2)

    Reference:
        Hadamard contexts are suggested in [Cheung et al., 2019](
        https://arxiv.org/abs/1902.05522), and in their code; R. Paley, "On orthogonal
        matrices", 1933.
    """

    def __init__(
        self,
        num_tasks: int,
        seed: int = 0,
        learnable: bool = False,
        storage: str = "bytes",
        **kwargs: Any,
    ) -> None:
        if storage == "seed":
            raise ValueError(
                "The rows of a Hadamard matrix are no hash of a seed. "
                'Received: storage="seed"'
            )
        super().__init__(
            num_tasks, seed=seed, learnable=learnable, storage=storage, **kwargs
        )

    def draw_bits(self, tasks: Any, width: int) -> np.ndarray:
        order = self.max_num_tasks(width)
        words = random_numbers.words(self.seed, range(1), order)[0]
        rows = hadamard_matrix.rows(order, np.argsort(words, kind="stable")[tasks])
        return rows[:, np.arange(width) % order] > 0

    def max_num_tasks(self, width: int) -> int:
        """Returns the order of the matrix that has nearest to `width` columns."""
        below, above = hadamard_matrix.orders_around(width)
        return below if width - below < above - width else above

    def max_overlap(self, width: int) -> float:
        """Returns a bound of `|<c_j, c_k>| / M` for any two tasks.

        Args:
            width: Integer, the number M of inputs.

        Returns:
            Float, 0 where a matrix of order M is at hand.
        """
        # Whole rows are orthogonal: what is cut off or begun again is all there is.
        return abs(self.max_num_tasks(width) - width) / width
