"""Numbers in few bits: how they are rounded, packed into bytes, and computed again.

Every part of a layer that is stored in `bits` bits follows one formula. A code `u` is
an integer in `[0, 2**bits - 1]`, and stands for `(u - (2**bits - 1) / 2) * scale`.

Codes are packed into bytes without a gap, whatever `bits` is. A code is split into
pieces whose widths are powers of two (7 bits = 4 + 2 + 1). Byte `i` of `n` holds
`8 / width` pieces of one width, those of the codes `i`, `i + n`, `i + 2 n` ..., the
first in its lowest bits. Bytes are thus unpacked in a few passes over long rows. The
highest bits of all codes come first.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.private import replace_weight

MOST = 8
QUANTIZATION = {"int8": 8, "int4": 4}  # Keras' names.
FIXED: dict[str, Any] = {"trainable": False, "autocast": False}
# Shares of the largest number at which rounding may clip. The best for one bit is a
# quarter, for numbers that are normally distributed.
CLIPS = np.linspace(0.1, 1, 19)
_zero: contextvars.ContextVar[Any] = contextvars.ContextVar("zero", default=None)


def levels(bits: int) -> float:
    """Returns the largest number that a code of `bits` bits stands for."""
    return (2**bits - 1) / 2


def check_bits(bits: Any) -> int | None:
    """Returns `bits` if it is an integer in [1, 8] or `None`.

    Raises:
        TypeError: It is neither.
        ValueError: It is outside of the range.
    """
    if bits is None:
        return None
    if check_integer("bits", bits) > MOST:
        raise ValueError(
            f"`bits` must be an integer in [1, {MOST}]. Received: bits={bits}"
        )
    return int(bits)


def check_bits_of(bits: Any, parts: dict[str, bool]) -> dict[str, int | None]:
    """Returns the bits of each part of a layer.

    Args:
        bits: Integer for all parts, or a dictionary of an integer or `None` for some
            parts, or `None`.
        parts: For the name of each part, whether the layer has it.

    Raises:
        TypeError: A number is not an integer.
        ValueError: A number is outside `[1, 8]`, a part is unknown, or the layer has
            no part that `bits` is for.
    """
    if not isinstance(bits, dict):
        bits = dict.fromkeys(parts, bits)
    for name in bits:
        check_name("part of `bits`", name, parts)
    checked = {name: check_bits(bits.get(name)) for name in parts}
    wanted = [name for name, number in checked.items() if number is not None]
    if wanted and not any(parts[name] for name in wanted):
        raise ValueError(
            f"`bits` is for {', '.join(map(repr, wanted))}, and the layer has none of "
            f"these. Received: bits={bits}"
        )
    return {name: number if parts[name] else None for name, number in checked.items()}


@functools.cache
def packed_size(count: int, bits: int) -> int:
    """Returns how many bytes `count` codes take."""
    return sum(-(-count * width // 8) for width in _widths(bits))


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes into bytes.

    Args:
        codes: Integer array of shape `(..., n)`, in `[0, 2**bits - 1]`.
        bits: Integer in [1, 8].

    Returns:
        uint8 array of shape `(..., packed_size(n, bits))`.
    """
    codes, rest, packed = np.asarray(codes).astype("uint8"), bits, []
    for width in _widths(bits):
        rest -= width
        pieces = (codes >> rest) & (2**width - 1)
        missing = -pieces.shape[-1] % (8 // width)
        pieces = np.pad(pieces, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
        pieces = pieces.reshape(*codes.shape[:-1], 8 // width, -1)
        shifts = np.arange(0, 8, width, dtype="uint8")[:, np.newaxis]
        packed.append(np.bitwise_or.reduce(pieces << shifts, axis=-2))
    return np.concatenate(packed, axis=-1)


def unpack_codes(xp: Any, packed: Any, bits: int, count: int) -> Any:
    """Returns the codes in packed bytes, the inverse of `pack()`.

    Args:
        xp: `numpy` or `keras.ops`.
        packed: uint8 of shape `(packed_size(count, bits),)` or `(rows, ...)`.
        bits: Integer in [1, 8].
        count: Integer, the number of codes in a row.

    Returns:
        uint8 or float32 of shape `(count,)` or `(rows, count)`.
    """
    widths = _widths(bits)
    sizes = [-(-count * width // 8) for width in widths]
    # Split: OpenVINO 2026.4 reads slices of a looked-up row at the wrong place.
    ends = np.cumsum(sizes)[:-1].tolist()
    every = xp.split(packed, ends, axis=-1) if ends else [packed]
    codes = None
    for width, data in zip(widths, every, strict=True):
        pieces = _pieces(xp, xp.expand_dims(data, -2), width)
        shape = (*xp.shape(packed)[:-1], data.shape[-1] * 8 // width)
        pieces = xp.reshape(pieces, shape)[..., :count]
        codes = pieces if codes is None else xp.add(codes * 2**width, pieces)
    return codes


def _pieces(xp: Any, packed: Any, width: int) -> Any:
    """Returns the pieces in bytes of shape `(..., 1, n)`, `(..., 8 // width, n)`."""
    shifts = np.arange(0, 8, width, dtype="uint8")[:, np.newaxis]
    if xp is np or keras.backend.backend() != "tensorflow":
        return xp.bitwise_and(xp.right_shift(packed, shifts), np.uint8(2**width - 1))
    # LiteRT, which TensorFlow writes, knows no operations on bits, and its converter
    # computes these with constants once.
    packed = ops.cast(ops.cast(packed, "int32"), "float32")
    lowest = 2.0 ** shifts.astype("float32")
    higher = ops.floor_divide(packed, lowest * 2**width)
    return ops.floor_divide(packed, lowest) - higher * 2**width


@contextlib.contextmanager
def kept_packed(task: Any) -> Iterator[None]:
    """Keeps converters from computing the numbers once and writing floats to a file.

    Bytes are looked up inside at a place that depends on the task. That it is always 0,
    only we know.

    Args:
        task: Tensor, an input of the program that is converted.
    """
    negative = ops.less(ops.clip(task, 0, 1), 0)  # Of no task whatever, nor of NaN.
    zero = ops.sum(ops.cast(negative, "int32"))
    token = _zero.set(zero)
    try:
        yield
    finally:
        _zero.reset(token)


def centered(packed: Any, bits: int, shape: tuple) -> Any:
    """Returns `u - (2**bits - 1) / 2` of packed codes.

    Args:
        packed: uint8 tensor of shape `(bytes,)` or `(rows, bytes)`.
        bits: Integer in [1, 8].
        shape: The shape of a row.

    Returns:
        float32 tensor of shape `shape` or `(rows, *shape)`.
    """
    if (zero := _zero.get()) is not None:
        packed = ops.take(ops.expand_dims(packed, 0), zero, axis=0)
    codes = unpack_codes(ops, packed, bits, int(np.prod(shape)))
    numbers = ops.subtract(ops.cast(codes, "float32"), levels(bits))
    return ops.reshape(numbers, (*ops.shape(packed)[:-1], *shape))


def best_scale(values: np.ndarray, bits: int, axis: Any, weights: Any = 1.0) -> Any:
    """Returns the scale of each group of numbers whose codes come nearest to them.

    Several shares of the largest number are tried, and each is fitted to its codes by
    least squares.

    Args:
        values: Float array.
        bits: Integer in [1, 8].
        axis: Integer or tuple, the dimensions along which numbers share a scale.
        weights: How much each squared error counts, broadcast against `values`.

    Returns:
        float64 array that broadcasts against `values`; positive.
    """
    axes = tuple(np.atleast_1d(axis) % values.ndim - values.ndim)
    weights = np.broadcast_to(weights, values.shape)
    if values.ndim > 2 and -values.ndim not in axes:  # Matrix by matrix, in the cache.
        pairs = zip(values, weights, strict=True)
        return np.stack([best_scale(each, bits, axes, by) for each, by in pairs])
    options: dict[str, Any] = {"axis": axes, "keepdims": True, "dtype": "float64"}
    tiny, middle = float(np.finfo("float32").tiny), levels(bits)
    most = np.abs(values).max(axes, keepdims=True) / middle
    values, weights = values.astype("float32"), weights.astype("float32")
    weighted, numbers = values * weights, np.empty_like(values)
    best, most_gain = np.maximum(most, tiny), np.full(most.shape, -1.0)
    for clip in CLIPS:
        step = np.maximum(clip * most, tiny)
        np.divide(values, step.astype("float32"), out=numbers)
        numbers += middle
        np.clip(np.rint(numbers, out=numbers), 0, 2 * middle, out=numbers)
        numbers -= middle
        along = np.maximum(np.sum(weighted * numbers, **options), 0.0)
        np.square(numbers, out=numbers)
        numbers *= weights
        size = np.maximum(np.sum(numbers, **options), tiny)
        # The error is |values|^2 less this, for the best scale of these codes.
        gain = np.square(along) / size
        best = np.where(gain > most_gain, np.maximum(along / size, tiny), best)
        most_gain = np.maximum(gain, most_gain)
    return best


def to_codes(values: np.ndarray, scale: Any, bits: int) -> np.ndarray:
    """Returns the codes nearest to numbers, as floats."""
    return np.clip(np.rint(values / scale + levels(bits)), 0, 2 * levels(bits))


def round_to_codes(values: Any, bits: int, axis: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rounds numbers to codes with the `best_scale()` of each group of them.

    Args:
        values: Float array.
        bits: Integer in [1, 8].
        axis: Integer or tuple, the dimensions along which numbers share a scale.

    Returns:
        Codes, an integer array like `values`, and float32 scales, without `axis`.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    values = np.asarray(values, "float64")
    if not np.isfinite(values).all():
        raise ValueError("Numbers to be rounded must be finite. Received: NaN or inf")
    scale = best_scale(values, bits, axis)
    codes = to_codes(values, scale, bits).astype("int32")
    scale = np.where(np.any(values, axis, keepdims=True), scale, 0.0)
    return codes, np.squeeze(scale, axis).astype("float32")


class FewBits(keras.layers.Layer):
    """Mixin of the parts of a layer whose numbers may be stored as codes.

    `__init__` sets `bits`, and `build()` either adds weights of floats or calls
    `add_codes()`. A part writes `add_codes()`, which calls `set_shapes()` and adds
    weights of bytes and of scales, and `round_values()`.
    """

    bits: int | None
    set_new_row: Callable  # Of `TaskRows`, in the parts that have rows.
    # The shapes of the codes of one row, for the attributes that are packed.
    _shapes: dict[str, tuple]

    def add_codes(self) -> None:
        """Adds the weights of bytes and scales."""
        raise NotImplementedError

    def round_values(self, bits: int) -> dict[str, np.ndarray]:
        """Returns codes and scales of the present floats, for `assign_codes()`."""
        raise NotImplementedError

    def decode(self, attribute: str, packed: Any) -> Any:
        """Returns centered numbers of rows of an attribute; see `centered()`."""
        return centered(packed, self._few, self._shapes[attribute])

    def get_codes(self) -> dict[str, np.ndarray]:
        """Returns the codes and scales; `set_codes(**codes)` sets them again."""
        self._check_has_codes()
        return {
            name: self._read(name, ops.convert_to_numpy(getattr(self, name)))
            for name in self._code_names()
        }

    def assign_codes(self, **given: Any) -> None:
        """Sets codes and scales, all or none.

        Args:
            **given: For each packed attribute an integer array of codes, for each
                attribute of scales a float array.

        Raises:
            TypeError: Codes are not integers.
            ValueError: The part has no codes, a shape is wrong, a code is outside
                `[0, 2**bits - 1]`, or a scale is not finite.
        """
        self._check_has_codes()
        values = {name: self._check(name, array) for name, array in given.items()}
        for name, value in values.items():
            getattr(self, name).assign(value)

    def set_new_codes(self, **given: Any) -> None:
        """Sets what a task that is added later begins with, in place of zeros.

        Args:
            **given: One task's row for attributes with a row for each task, as
                `assign_codes()` takes all rows.
        """
        for name, row in given.items():
            is_code = name in self._shapes
            row = pack(np.reshape(row, -1), self._few) if is_code else np.asarray(row)
            self.set_new_row(getattr(self, name), row)

    def round_to_bits(self, bits: int) -> None:
        """Turns the present floats into codes of `bits` bits, which are not trained.

        Raises:
            ValueError: The part is not built, has codes already, or is not finite.
        """
        few = check_bits(bits)
        if few is None or not self.built or self.bits is not None:
            raise ValueError(
                "Floats of a built layer can be rounded, and only once. "
                f"Received: bits={bits} for {self.name!r}, which has "
                f"bits={self.bits} and is {'' if self.built else 'not '}built"
            )
        values = self.round_values(few)
        *others, last = (getattr(self, name) for name in self._float_names())
        self.bits = few
        for weight in others:
            replace_weight(self, weight, lambda: None)
        replace_weight(self, last, self.add_codes)
        self.assign_codes(**values)

    def _float_names(self) -> list[str]:
        """The attributes that hold the floats."""
        return list(self._shapes)

    def _code_names(self) -> list[str]:
        """The attributes of codes and scales."""
        raise NotImplementedError

    @property
    def _few(self) -> int:
        return int(self.bits or 0)  # For type checkers: here there are bits.

    def _check_has_codes(self) -> None:
        if self.bits is None or not self.built:
            raise ValueError(
                "Codes are those of a built part with `bits`. Received: "
                f"{self.name!r}, which has bits={self.bits}"
            )

    def _read(self, name: str, values: np.ndarray) -> np.ndarray:
        if name not in self._shapes:
            return values
        shape = self._shapes[name]
        count = int(np.prod(shape))
        codes = unpack_codes(np, values, self._few, count).astype("int32")
        return codes.reshape(*values.shape[:-1], *shape)

    def _check(self, name: str, array: Any) -> np.ndarray:
        weight, array = getattr(self, name), np.asarray(array)
        is_code = name in self._shapes
        expected = tuple(weight.shape)
        if is_code:
            expected = (*expected[:-1], *self._shapes[name])
            if array.dtype.kind not in "iu":
                raise TypeError(
                    f"`{name}` must be integers. Received: dtype {array.dtype}"
                )
        if array.shape != expected:
            raise ValueError(
                f"`{name}` must have shape {expected}. Received: shape {array.shape}"
            )
        if not is_code:
            if not np.isfinite(array).all():
                raise ValueError(f"`{name}` must be finite. Received: NaN or inf")
            return array.astype("float32")
        if array.size and not 0 <= array.min() <= array.max() < 2**self._few:
            raise ValueError(
                f"`{name}` must be in [0, {2**self._few - 1}]. Received: numbers in "
                f"[{array.min()}, {array.max()}]"
            )
        return pack(array.reshape(*weight.shape[:-1], -1), self._few)


def _widths(bits: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if bits & width]
