"""What else keeps K fine-tuned kernels of each layer in little memory.

Each rival keeps kernels in place of a network's own, and tells the bits that these
take: numbers, scales and masks. Biases and normalizations are the tasks' own and are
counted elsewhere, for all rivals in the same way. Kernels are rows `(K, M, N)`.

Where a rival needs a base, it is in float32, or in 8 bits with a scale a column, and
beside factors in few bits also in 4. Differences are those to the base as it is kept.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import numpy as np

from keras_psp.layers._few_bits import best_scale
from keras_psp.layers._few_bits import to_codes
from keras_psp.surgery._parts import Wanted
from keras_psp.surgery._parts import transpose
from keras_psp.surgery._rounding import Rounding
from keras_psp.surgery._rounding import rounded

FLOAT = 32
BASES = (FLOAT, 8)
# What factors of all tasks take, in float32 networks: those in float32, and in 4 bits.
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
FEW_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
KEPT_OFF_DIAGONAL = 0.9  # In RegMean.
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6)  # Of TALL masks.
ROUNDS = 10  # Of alternating fits.

Kernels = np.ndarray


class Layer(Protocol):
    """A layer of K networks.

    Attributes:
        kernels: The kernels of all tasks, `(K, M, N)`.
        base: That of the network from which all were trained, `(M, N)`.
    """

    kernels: Kernels
    base: np.ndarray

    def wanted(self, compressed: bool) -> Wanted:
        """Returns kernels and inputs' products: of each own network, or as kept."""

    def keep(self, kernels: Kernels) -> None:
        """Keeps kernels in place of the networks' own."""


class Network(Protocol):
    """K networks.

    Attributes:
        layers: The layers with kernels, from inputs to outputs. The last is the head.
    """

    layers: Sequence[Layer]

    def agreement(self) -> np.ndarray:
        """Returns how often each task's answers are its own network's, `(K,)`."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """A method, in one size.

    Attributes:
        system: String, the method.
        size: String, what makes its size.
        keep: Function of a `Network`. It keeps kernels and returns their bits.
    """

    system: str
    size: str
    keep: Callable[[Network], float]


def rivals(num_tasks: int, most: float) -> Iterator[Rival]:
    """Yields all rivals, in each size up to about `most` float32 networks."""

    def fits(bits: float, base: float = 0) -> bool:
        return num_tasks * bits + base <= most * FLOAT

    yield Rival("the base, own heads", "", floor)
    for feedback, how in ((False, ""), (True, ", error feedback")):
        for bits in (1, 2, 3, 4, 5, 6, 8):
            if fits(bits):
                options = {"bits": bits, "feedback": feedback}
                yield _rival(f"copies{how}", f"{bits} bits", copies, **options)
    for base in BASES:
        of = f", base in {base} bits"
        for feedback, how in ((False, ""), (True, ", error feedback")):
            for bits in (1, 2, 3, 4, 6):
                if fits(bits, base):
                    options = {"bits": bits, "base": base, "feedback": feedback}
                    size = f"{bits} bits{of}"
                    yield _rival(f"differences{how}", size, differences, **options)
        for scale in ("kernel", "column", "data"):
            if fits(1, base):
                options = {"drop": 0.0, "base": base, "scale": scale}
                yield _rival("BitDelta", f"scale by {scale}{of}", signs, **options)
        for scale in ("kernel", "data"):
            for drop in (0.9, 0.7, 0.5):
                if fits(_entropy(drop), base):
                    size = f"{drop:.0%} dropped, scale by {scale}{of}"
                    options = {"drop": drop, "base": base, "scale": scale}
                    yield _rival("T-Switch", size, signs, **options)
        for first, second in ((3, 2), (4, 2), (4, 3), (8, 4)):
            if fits(second, base + first):
                options = {"first": first, "second": second, "base": base}
                size = f"{first} + {second} bits{of}"
                yield _rival("RTVQ", size, residual_rounding, **options)
        if fits(1, 2 * base):
            both = f"both in {base} bits"
            yield Rival("EMR", both, functools.partial(elect, bits=base))
            yield Rival("TALL masks", both, functools.partial(mask, bits=base))
    for system, keep, more in _FACTORED:
        few = "bits" in more
        for base in (*BASES, 4) if few else BASES:
            for share in FEW_SHARES if few else SHARES:
                if fits(0, base + FLOAT * share):
                    options = {"share": share, "base": base, **more}
                    size = f"{share:g} networks, base in {base} bits"
                    yield _rival(system, size, keep, **options)
    for bits in (FLOAT, 8, 4):
        size = f"{bits} bits"
        yield _rival("RegMean", size, regression_mean, bits=bits)
        arithmetic = functools.partial(task_arithmetic, bits=bits)
        yield Rival("task arithmetic", size, arithmetic)


def _rival(system: str, size: str, keep: Callable, **options: Any) -> Rival:
    """Returns a rival that goes from layer to layer."""

    def keep_all(network: Network) -> float:
        total = 0.0
        for layer in network.layers:
            kernels, bits = keep(layer, **options)
            layer.keep(kernels)
            total += bits
        return total

    return Rival(system, size, keep_all)


# Each of these returns a layer's kernels and their bits.

Kept = tuple[Kernels, float]


def copies(layer: Layer, bits: int, feedback: bool) -> Kept:
    """Kernels in few bits, with a scale a column.

    With feedback, later rows make up for the errors of earlier ones, as in GPTQ
    (Frantar et al., 2023).
    """
    return _rounded_rest(layer, 0.0, bits, feedback)


def differences(layer: Layer, bits: int, base: int, feedback: bool) -> Kept:
    """Differences to the base in few bits, with a scale a column."""
    start, size = _in_bits(layer.base, base)
    rest, more = _rounded_rest(layer, start, bits, feedback)
    return start + rest, size + more


def signs(layer: Layer, drop: float, base: int, scale: str) -> Kept:
    """Signs of differences, of which a share of the smallest are 0.

    BitDelta (Liu et al., 2024) drops none, and T-Switch (Qi et al., 2025) most. There
    is a scale for each `"kernel"`, for each `"column"`, or one for each column that
    gives the least error of the outputs on the `"data"`. Zeros and signs are counted by
    their entropy.
    """
    start, size = _in_bits(layer.base, base)
    rest = layer.kernels - start
    if scale == "data":
        wanted = layer.wanted(compressed=True)
        rest = wanted.kernels - start
    magnitudes = np.abs(rest)
    threshold = np.quantile(magnitudes, drop, (-2, -1), keepdims=True)
    kept = np.sign(rest) * (magnitudes >= threshold if drop else 1)
    weighted = wanted.grams @ kept if scale == "data" else kept
    axis = (-2, -1) if scale == "kernel" else -2
    down = np.sum(weighted * kept, axis, keepdims=True)
    step = np.sum(weighted * rest, axis, keepdims=True) / np.maximum(down, 1e-30)
    used = np.count_nonzero(kept) / kept.size
    numbers = kept.size * (_entropy(1 - used) if drop else 1)
    return start + step * kept, size + numbers + FLOAT * step.size


def low_rank(
    layer: Layer, share: float, base: int, bits: int = FLOAT, aware: bool = False
) -> Kept:
    """The leading singular directions of each difference.

    TSV-C (Gargiulo et al., 2025) keeps them in float32. With `aware`, they are those of
    the outputs, as in SVD-LLM (Wang et al., 2025). Factors in few bits have a scale for
    each direction.
    """
    start, size = _in_bits(layer.base, base)
    num_tasks, m, n = layer.kernels.shape
    rank = int(share * FLOAT * m * n / (num_tasks * bits * (m + n)))
    rank = min(max(rank, 1), m, n)
    if aware:
        wanted = layer.wanted(compressed=True)
        rest = wanted.kernels - start
        moments = transpose(rest) @ (wanted.grams @ rest)
    else:
        rest = layer.kernels - start
        moments = transpose(rest) @ rest
    right = _leading(moments, rank)
    left = rest @ right
    size += num_tasks * bits * rank * (m + n)
    if bits < FLOAT:
        left, right = _nearest(left, bits), _nearest(right, bits)
        size += num_tasks * FLOAT * rank
    return start + left @ transpose(right), size


def shared_bases(layer: Layer, share: float, base: int, diagonal: bool = False) -> Kept:
    """Differences `U S_k V^T` of bases that all tasks share, in float32.

    Compress then Serve (Brüel-Gabrielsson et al., 2024): `S_k` is any matrix, or
    `diagonal`. U, V and all `S_k` are fitted in turn, to differences of size one.
    """
    start, size = _in_bits(layer.base, base)
    rest = layer.kernels - start
    num_tasks, m, n = rest.shape
    norms = np.sqrt(np.sum(np.square(rest), (-2, -1), keepdims=True))
    unit = rest / np.maximum(norms, 1e-30)
    numbers = share * m * n
    if diagonal:
        rank = int(numbers / (m + n + num_tasks))
        rank = min(max(rank, 1), m, n)
        fitted, own = _diagonal_cores(unit, rank), rank
    else:
        half = (m + n) / 2
        root = np.sqrt(half**2 + num_tasks * numbers)
        rank = int((root - half) / num_tasks)
        rank = min(max(rank, 1), m, n)
        fitted, own = _full_cores(unit, rank), rank**2
    size += FLOAT * (rank * (m + n) + num_tasks * own)
    return start + fitted * norms, size


def _full_cores(unit, rank):
    right = _leading(np.einsum("kmi,kmj->ij", unit, unit, optimize=True), rank)
    for _ in range(ROUNDS):
        seen = unit @ right
        left = _leading(np.einsum("kir,kjr->ij", seen, seen, optimize=True), rank)
        seen = left.T @ unit
        right = _leading(np.einsum("kri,krj->ij", seen, seen, optimize=True), rank)
    return left @ (left.T @ unit @ right) @ right.T


def _diagonal_cores(unit, rank):
    left, _, right = np.linalg.svd(unit.mean(0), full_matrices=False)
    left, right = left[:, :rank], right[:rank].T
    for i in range(ROUNDS):
        bound = np.einsum("kmr,mr->kr", unit @ right, left)
        cores = _solve((left.T @ left) * (right.T @ right), bound.T).T
        if i == ROUNDS - 1:
            break
        both = cores.T @ cores
        bound = np.einsum("kmr,kr->mr", unit @ right, cores)
        left = _solve(both * (right.T @ right), bound.T).T
        bound = np.einsum("knr,kr->nr", transpose(unit) @ left, cores)
        right = _solve(both * (left.T @ left), bound.T).T
    return (left * cores[:, None]) @ right.T


def residual_rounding(layer: Layer, first: int, second: int, base: int) -> Kept:
    """Differences as their rounded mean, and what it leaves in fewer bits.

    RTVQ (Kim et al., 2025), with a scale for each column in place of one for all.
    """
    start, size = _in_bits(layer.base, base)
    rest = layer.kernels - start
    mean = _nearest(rest.mean(0), first)
    own = _nearest(rest - mean, second)
    size += _few_bits(mean, first) + _few_bits(own, second)
    return start + mean + own, size


def regression_mean(layer: Layer, bits: int) -> Kept:
    """One kernel of the least error for all (RegMean, Jin et al., 2023)."""
    wanted = layer.wanted(compressed=False)
    diagonal = np.eye(wanted.grams.shape[-1])
    kept = KEPT_OFF_DIAGONAL + (1 - KEPT_OFF_DIAGONAL) * diagonal
    kernel = Wanted(wanted.kernels, wanted.grams * kept).center(layer.kernels)
    kernel, size = _in_bits(kernel, bits)
    return _repeated(layer, kernel), size


_FACTORED = (
    ("TSV-C (SVD)", low_rank, {}),
    ("SVD in 4 bits", low_rank, {"bits": 4}),
    ("activation-aware SVD", low_rank, {"aware": True}),
    ("activation-aware SVD in 4 bits", low_rank, {"aware": True, "bits": 4}),
    ("joint diagonalization, full cores", shared_bases, {}),
    ("joint diagonalization, diagonal cores", shared_bases, {"diagonal": True}),
)


# These choose by all layers. They keep kernels themselves, and return the bits.


def floor(network: Network) -> float:
    """The base's kernels, and in the head each task's own."""
    size = 0.0
    for layer in network.layers[:-1]:
        layer.keep(_repeated(layer, layer.base))
        size += FLOAT * layer.base.size
    head = network.layers[-1]
    head.keep(head.kernels)
    return size + FLOAT * head.kernels.size


def elect(network: Network, bits: int) -> float:
    """EMR (Huang et al., 2024): one difference, a mask and a factor for each task.

    For each number the sign of the sum is elected. The difference is the largest of
    this sign, and a task's mask leaves out where its own has the other.
    """
    masked, own, starts, size = [], [], [], 0.0
    for layer in network.layers:
        start, base_size = _in_bits(layer.base, bits)
        rest = layer.kernels - start
        elected = np.sign(rest.sum(0))
        one = elected * np.maximum(rest * elected, 0).max(0)
        one, more = _in_bits(one, bits)
        masked.append(np.where(rest * one > 0, one, 0.0))
        own.append(np.abs(rest).sum((-2, -1)))
        starts.append(start)
        size += base_size + more + rest.size
    length = sum(np.abs(each).sum((-2, -1)) for each in masked)
    factor = (sum(own) / np.maximum(length, 1e-30))[:, None, None]
    for layer, start, each in zip(network.layers, starts, masked, strict=True):
        layer.keep(start + factor * each)
    return size + FLOAT * len(factor)


def mask(network: Network, bits: int) -> float:
    """TALL masks (Wang et al., 2024): the sum of all differences, and masks of it.

    A number is a task's where its own difference is larger than a threshold times what
    the others add. Each task takes the threshold that agrees best on the examples.
    """
    given, size = [], 0.0
    for layer in network.layers:
        start, base_size = _in_bits(layer.base, bits)
        one, more = _in_bits((layer.kernels - start).sum(0), bits)
        given.append((start, one))
        size += base_size + more + layer.kernels.size

    def keep(thresholds: np.ndarray) -> None:
        for layer, (start, one) in zip(network.layers, given, strict=True):
            rest = layer.kernels - start
            least = thresholds[:, None, None] * np.abs(one - rest)
            layer.keep(start + np.where(np.abs(rest) >= least, one, 0.0))

    num_tasks, agreements = len(network.layers[0].kernels), []
    for threshold in THRESHOLDS:
        keep(np.full(num_tasks, threshold))
        agreements.append(network.agreement())
    keep(np.take(THRESHOLDS, np.argmax(agreements, 0)))
    return size


def task_arithmetic(network: Network, bits: int) -> float:
    """The base and a share of all differences, for all tasks (Ilharco et al., 2023)."""

    def keep(factor: float) -> float:
        size = 0.0
        for layer in network.layers:
            total = (layer.kernels - layer.base).sum(0)
            one, more = _in_bits(layer.base + factor * total, bits)
            layer.keep(_repeated(layer, one))
            size += more
        return size

    def agreement(factor: float) -> float:
        keep(factor)
        return network.agreement().mean()

    num_tasks = len(network.layers[0].kernels)
    return keep(max(np.geomspace(1 / num_tasks, 1, 10), key=agreement))


# Numbers in few bits.


def _in_bits(kernel, bits):
    if bits == FLOAT:
        return kernel, FLOAT * kernel.size
    return _nearest(kernel, bits), _few_bits(kernel, bits)


def _few_bits(kernels, bits):
    """The bits of kernels with a scale a column."""
    return bits * kernels.size + FLOAT * kernels.size // kernels.shape[-2]


def _rounded_rest(layer, start, bits, feedback):
    if not feedback:
        return _nearest(layer.kernels - start, bits), _few_bits(layer.kernels, bits)
    wanted = layer.wanted(compressed=True)
    rest = wanted.kernels - start
    codes, scale = Rounding(wanted.grams).round(rest, bits)
    return rounded(codes, scale, bits), _few_bits(rest, bits)


def _nearest(rows, bits):
    scale = best_scale(rows, bits, -2)
    return rounded(to_codes(rows, scale, bits), scale, bits)


def _entropy(zeros):
    """The bits of a number that is 0 with this probability, or else a sign."""
    if zeros in (0, 1):
        return 1 - zeros
    signs = 1 - zeros
    return signs - zeros * np.log2(zeros) - signs * np.log2(signs)


def _repeated(layer, kernel):
    return np.broadcast_to(kernel, layer.kernels.shape)


def _leading(moments, number):
    return np.linalg.eigh(moments)[1][..., : -number - 1 : -1]


def _solve(gram, right):
    ridge = 1e-9 * np.trace(gram) / len(gram) + 1e-30
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), right)
