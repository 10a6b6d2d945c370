"""Chooses each layer's parts for a given memory, by what they gain per bit."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from keras_psp.layers._task_low_rank import FULL
from keras_psp.surgery._parts import Form
from keras_psp.surgery._parts import Wanted
from keras_psp.surgery._parts import core_of
from keras_psp.surgery._parts import fit
from keras_psp.surgery._parts import shared_directions
from keras_psp.surgery._parts import transpose
from keras_psp.surgery._rounding import rounded

BASE_BITS = (2, 3, 4, 5, 6, 8)
CORE_BITS = (2, 3, 4, 6)
RANK_BITS = (2, 3, 4)  # Signs alone lose far more than `LOSS` says.
FULL_BITS = tuple(range(1, 9))
RANKS = (*range(17), *range(18, 33, 2), *range(36, 129, 4))
CORES = (8, 16, 32, 48, 64, 96, 128, 192)
# What is lost of a normally distributed number that is rounded to so many bits, for
# the best step between codes (Max, 1960, table II).
LOSS = {1: 0.363, 2: 0.119, 3: 0.0374, 4: 0.0115, 5: 0.0035, 6: 0.001, 8: 0.0001}
SAMPLE = 4  # Tasks from which the error of what each has of its own is estimated.


@dataclasses.dataclass(frozen=True)
class Choice:
    """A form of a layer, its memory, and the error that is expected of it."""

    form: Form
    bits: int
    error: float


def choices(layers: Sequence[Wanted]) -> list[Choice]:
    """Returns all that there is to choose from.

    Args:
        layers: List of what is to be kept of the layers that take one form: of the
            projections of an attention, or of one layer.
    """
    num_tasks = len(layers[0].kernels)
    shapes = [(each.kernels.shape[1], each.kernels.shape[2]) for each in layers]
    narrowest = None if len(shapes) == 1 else min(min(shape) for shape in shapes)
    errors = [dict(_estimates(wanted, narrowest)) for wanted in layers]
    return [
        Choice(
            form,
            sum(form.count_bits(m, n, num_tasks) for m, n in shapes),
            sum(each[form] for each in errors),
        )
        for form in errors[0]
        if all(form in each for each in errors)
    ]


def best(found: Sequence[Choice]) -> list[Choice]:
    """Returns the lower convex hull of the errors over the bits, smallest first."""
    hull: list[Choice] = []
    for each in sorted(found, key=lambda each: (each.bits, each.error)):
        if hull and (each.error >= hull[-1].error or each.bits == hull[-1].bits):
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull


def choose(layers: Sequence[list[Choice]], bits: float) -> list[Choice] | None:
    """Returns a choice for each layer, of the least total error in so many bits.

    Returns `None` if the least that the layers can take is more.
    """
    places = [0] * len(layers)
    total = sum(each[0].bits for each in layers)
    if total > bits:
        return None
    closed: set[int] = set()
    while len(closed) < len(layers):
        steps = [
            (_gain(each[place], each[place + 1]), i)
            for i, (each, place) in enumerate(zip(layers, places, strict=True))
            if i not in closed and place + 1 < len(each)
        ]
        if not steps:
            break
        _, i = max(steps)
        step = layers[i][places[i] + 1].bits - layers[i][places[i]].bits
        if total + step > bits:
            closed.add(i)
            continue
        total += step
        places[i] += 1
    return [each[place] for each, place in zip(layers, places, strict=True)]


def _gain(a, b):
    return (a.error - b.error) / (b.bits - a.bits)


def _estimates(wanted: Wanted, narrowest: int | None) -> Iterator[tuple[Form, float]]:
    """Yields forms with the mean error of a task that is expected of them.

    Args:
        wanted: The kernels that are to be kept.
        narrowest: Where other layers take the same form, their least width. Or `None`.
    """
    center = wanted.center(wanted.kernels)
    sample = wanted.of(wanted.kernels, SAMPLE)
    shared_errors = {
        bits: rounded(*wanted.shared_rounding.round(center, bits), bits) - center
        for bits in BASE_BITS
    }
    bases = {
        bits: float(np.sum((wanted.mean_gram @ error @ wanted.mean_outputs) * error))
        for bits, error in shared_errors.items()
    }
    for kept, base in ((sample.kernels, 0), (sample.kernels - center, 4)):
        for bits in FULL_BITS:
            codes, scale = sample.own_rounding.round(kept, bits)
            lost = sample.error(rounded(codes, scale, bits) - kept).mean()
            yield Form(base, rank=FULL, rank_bits=bits), float(lost)
    rest = wanted.of(wanted.kernels - center)
    few = rest.of(rest.kernels, SAMPLE)
    least = min(narrowest or np.inf, *center.shape)
    ranks = [rank for rank in RANKS if rank < least]
    tail = _tail(few)
    rank = min(16, least)
    own_loss = _Loss.measure(Form(rank=rank, rank_bits=_Loss.BITS), few, tail[rank])
    # Other parts make up for some of the base's error: which share they leave of it.
    error, size = shared_errors[_Loss.BITS], bases[_Loss.BITS]
    shares = (_tail(few.of(few.kernels - error)) - tail) / max(size, 1e-30)
    for core, lost_of, left, more in _cores(rest, few, narrowest, error):
        tail = _tail(left)
        kept = np.clip(shares, 0.0, 1.0) * np.clip(more / max(size, 1e-30), 0.0, 1.0)
        for rank in ranks:
            for core_bits in CORE_BITS if core else (4,):
                for bits in RANK_BITS if rank else (4,):
                    lost = tail[rank] + own_loss(bits, rank) * (tail[0] - tail[rank])
                    lost += lost_of(core_bits)
                    for base in BASE_BITS:
                        form = Form(base, core, core_bits, rank, bits)
                        yield form, kept[rank] * bases[base] + float(lost)


class _Loss:
    """What share of the energy that a part keeps is lost when it is rounded.

    It is measured for one size and three bits. It shrinks where there are more numbers
    to make up for each other's errors: by the power -0.6 of their number, as measured.
    """

    BITS = 3

    def __init__(self, share: float, size: int) -> None:
        self._share, self._size = share / LOSS[self.BITS], size

    @classmethod
    def measure(cls, form: Form, wanted: Wanted, ideal: float) -> "_Loss":
        """Fits a form of one part, of which the error would be `ideal` unrounded."""
        errors = wanted.error(fit(form, wanted).kernels() - wanted.kernels)
        kept = max(np.mean(wanted.energy) - ideal, np.finfo("float32").tiny)
        size = min(form.core) if form.core else int(form.rank)
        return cls(max(np.mean(errors) - ideal, 0.0) / kept, size)

    def __call__(self, bits: int, size: int) -> float:
        shrunk = (max(size, self._size) / self._size) ** -0.6
        return min(1.0, self._share * LOSS[bits] * shrunk)


def _tail(rest):
    """The mean energy that is left without the first r directions, for each r."""
    seen = rest.kernels @ np.linalg.cholesky(rest.outputs)
    if seen.shape[1] < seen.shape[2]:
        seen = transpose(np.linalg.cholesky(rest.grams)) @ seen
        moments = seen @ transpose(seen)
    else:
        moments = transpose(seen) @ (rest.grams @ seen)
    energies = np.maximum(np.linalg.eigvalsh(moments).mean(0), 0.0)
    return np.append(np.cumsum(energies)[::-1], 0.0)


def _cores(rest, few, narrowest, error):
    """Yields shapes of cores, with what they are expected to lose and to leave.

    The loss is a function of their bits, what they leave the `Wanted` of a few, and in
    the end how much they leave of an error that all kernels have.
    """
    with_error = few.of(few.kernels - error)
    yield None, lambda bits: 0.0, few, np.inf
    m, n = rest.kernels.shape[1:]
    most = max(m, n) if narrowest is None else narrowest
    shapes = [(min(size, m), min(size, n)) for size in CORES if size < most]
    if not shapes:
        return
    left, right = shared_directions(rest, *shapes[-1])

    def without(kept, shape):
        a, v = left[:, : shape[0]], right[:, : shape[1]]
        return kept.of(kept.kernels - a @ core_of(kept, a, v) @ v.T)

    middle = shapes[len(shapes) // 2]
    ideal = np.mean(without(rest, middle).energy)
    loss = _Loss.measure(Form(core=middle, core_bits=_Loss.BITS), rest, ideal)
    whole = np.mean(few.energy)
    for shape in shapes:
        remaining = without(few, shape)
        kept = whole - np.mean(remaining.energy)
        size = min(shape)
        more = without(with_error, shape).energy - remaining.energy
        yield shape, lambda b, s=size, e=kept: loss(b, s) * e, remaining, more.mean()
