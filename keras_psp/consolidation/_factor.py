"""One side of what a kernel's matrices say, by its eigenvectors."""

import numpy as np
from keras import ops


class Factor:
    """A symmetric matrix without negative eigenvalues, `V diag(values) V^T`.

    Or only its diagonal, where it would be too large: then there are no vectors `V`.

    Args:
        optimizer: The optimizer whose variables it consists of.
        size: Positive integer, its number of rows.
        largest: Positive integer, of at most how many rows it is a matrix.
    """

    def __init__(self, optimizer, size, largest):
        self.vectors = None
        if size <= largest:
            self.vectors = optimizer.add_variable((size, size), "identity")
        self.values = optimizer.add_variable((size,), "zeros")

    def into(self, rows):
        """Returns rows in the coordinates of the eigenvectors."""
        if self.vectors is None:
            return rows
        return ops.matmul(ops.transpose(self.vectors), rows)

    def out_of(self, rows):
        """Returns the rows of which these are the coordinates."""
        return rows if self.vectors is None else ops.matmul(self.vectors, rows)

    def get(self):
        """Returns the matrix, or its diagonal, as float64 array."""
        values = ops.convert_to_numpy(self.values).astype("float64")
        if self.vectors is None:
            return values
        vectors = ops.convert_to_numpy(self.vectors).astype("float64")
        return (vectors * values) @ vectors.T

    def set(self, matrix):
        """Makes it another matrix, or diagonal."""
        values = matrix
        if self.vectors is not None:
            values, vectors = np.linalg.eigh(matrix)
            self.vectors.assign(vectors)
        # Rounding has made some of them negative.
        self.values.assign(np.maximum(values, 0))
