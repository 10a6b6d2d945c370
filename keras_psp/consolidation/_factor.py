"""One of a kernel's two matrices, kept as eigenvalues and eigenvectors."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.distribution import layout_like


class Factor:
    """A symmetric matrix without negative eigenvalues, `V diag(values) V^T`.

    Where the matrix would be too large it is only its diagonal, without vectors `V`.

    Args:
        optimizer: The optimizer that the variables belong to.
        variable: The kernel that it says something of.
        size: Positive integer, the number of rows.
        largest: Positive integer, the most rows of which there is a matrix.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variable: Any,
        size: int,
        largest: int,
    ) -> None:
        def add(shape: tuple, initializer: str) -> Any:
            layout = layout_like(variable, shape)
            return optimizer.add_variable(shape, initializer, layout=layout)

        self.vectors = add((size, size), "identity") if size <= largest else None
        self.values = add((size,), "zeros")

    def into(self, rows: Any) -> Any:
        """Returns rows in the coordinates of the eigenvectors."""
        if self.vectors is None:
            return rows
        return ops.matmul(ops.transpose(self.vectors), rows)

    def out_of(self, rows: Any) -> Any:
        """Returns the rows of which these are the coordinates."""
        return rows if self.vectors is None else ops.matmul(self.vectors, rows)

    def get(self) -> np.ndarray:
        """Returns the matrix, or its diagonal, as float64 array."""
        values = ops.convert_to_numpy(self.values).astype("float64")
        if self.vectors is None:
            return values
        vectors = ops.convert_to_numpy(self.vectors).astype("float64")
        return (vectors * values) @ vectors.T

    def set(self, matrix: np.ndarray) -> None:
        """Makes it another matrix, or its diagonal; of a diagonal, the matrix."""
        values = matrix
        if self.vectors is None:
            values = matrix if matrix.ndim == 1 else np.diag(matrix)
        else:
            matrix = np.diag(matrix) if matrix.ndim == 1 else matrix
            values, vectors = np.linalg.eigh(matrix)
            self.vectors.assign(vectors)
        # Rounding has made some of them negative.
        self.values.assign(np.maximum(values, 0))

    def copy(self, other: "Factor") -> None:
        """Makes it what another factor of the same size is."""
        if self.vectors is not None:
            self.vectors.assign(other.vectors)
        self.values.assign(other.values)
