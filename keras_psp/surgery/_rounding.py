"""Rounds matrices to few bits, so that their products with inputs change least."""

import numpy as np

from keras_psp.layers._few_bits import best_scale
from keras_psp.layers._few_bits import levels
from keras_psp.layers._few_bits import to_codes

BLOCK = 32


def decode(codes: np.ndarray, bits: int) -> np.ndarray:
    """Returns the numbers that codes stand for, for a scale of one."""
    return codes.astype("float32") - np.float32(levels(bits))


def rounded(codes: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """Returns the numbers that codes of a scale stand for."""
    return decode(codes, bits) * np.asarray(scale, "float32")


class Rounding:
    """Rounds matrices row after row; later rows make up for earlier ones' errors.

    Args:
        gram: Array `(..., M, M)`, positive definite: the mean products of the inputs
            that the rows are multiplied with.

    Reference:
        [Frantar et al., 2023](https://arxiv.org/abs/2210.17323), with the rows of the
        largest inputs first.
    """

    def __init__(self, gram: np.ndarray) -> None:
        self._weights = np.diagonal(gram, axis1=-2, axis2=-1)[..., None]
        self._order = np.argsort(-self._weights, axis=-2)
        gram = np.take_along_axis(gram, self._order, -2)
        gram = np.take_along_axis(gram, np.swapaxes(self._order, -1, -2), -1)
        size = gram.shape[-1]
        damping = 0.01 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
        gram = (gram + damping * np.eye(size)).astype("float32")
        # Row i of this factor says how the rows behind make up for an error in row i.
        self._factor = np.swapaxes(np.linalg.cholesky(np.linalg.inv(gram)), -1, -2)

    def round(
        self, rows: np.ndarray, bits: int, scale: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rounds matrices.

        Args:
            rows: Array `(..., M, N)`.
            bits: Integer from 1 to 8.
            scale: Array that broadcasts against `rows`. Or `None`, for the best of each
                column.

        Returns:
            `(codes, scale)`: uint8 `(..., M, N)`, and the scale. Rounded are
            `decode(codes, bits) * scale`.
        """
        if scale is None:
            scale = best_scale(rows, bits, -2, self._weights)
        ordered = np.take_along_axis(rows, self._order, -2).astype("float32")
        scales = np.broadcast_to(scale, rows.shape).astype("float32")
        if scale.shape[-2] > 1:
            scales = np.take_along_axis(scales, self._order, -2)
        codes = self._round_ordered(ordered, scales, bits)
        return np.take_along_axis(codes, np.argsort(self._order, -2), -2), scale

    def _round_ordered(self, rows, scales, bits):
        factor, size, most = self._factor, rows.shape[-2], levels(bits)
        codes = np.empty(rows.shape, "uint8")
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            errors = np.empty_like(rows[..., start:end, :])
            for i in range(start, end):
                row, scale = rows[..., i, :], scales[..., i, :]
                code = to_codes(row, scale, bits)
                codes[..., i, :] = code
                error = (row - (code - most) * scale) / factor[..., i, i, None]
                share = factor[..., i, i + 1 : end, None]
                rows[..., i + 1 : end, :] -= share * error[..., None, :]
                errors[..., i - start, :] = error
            later = np.swapaxes(factor[..., start:end, end:], -1, -2)
            rows[..., end:, :] -= later @ errors
        return codes
