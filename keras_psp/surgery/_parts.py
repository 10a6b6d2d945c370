"""The parts that keep one layer's kernels of all tasks in few numbers of few bits.

Kernels are rows `(M, N)` here. Task k's is

    W_k = W_0 + A core_k V^T + A_k B_k

where each part may be missing. What is to be kept is given as `Wanted`: for each task a
kernel, the mean products of the inputs, and how much the model's answers change with
the outputs. The two tell which errors of the kernel count. All are in float32 here;
equations are solved in float64.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_psp.layers._few_bits import best_scale
from keras_psp.layers._few_bits import check_bits_of
from keras_psp.layers._few_bits import packed_size
from keras_psp.layers._task_core import check_core
from keras_psp.layers._task_low_rank import FULL
from keras_psp.layers._task_low_rank import check_rank
from keras_psp.surgery._rounding import Rounding
from keras_psp.surgery._rounding import decode
from keras_psp.surgery._rounding import rounded

SCALE_BITS = 32
DEFAULT_BITS = 4


@dataclasses.dataclass(frozen=True)
class Form:
    """Which parts a layer has, and in how many bits.

    Attributes:
        base: Integer, the bits of the base; 0 without a base.
        core: Pair of integers, the shape of each task's core, or `None`.
        core_bits: Integer, its bits and those of the bases A and V.
        rank: Integer, the rank of each task's own part; 0 without, `"full"` for a
            whole kernel.
        rank_bits: Integer, its bits.
    """

    base: int = 0
    core: tuple[int, int] | None = None
    core_bits: int = 4
    rank: int | str = 0
    rank_bits: int = 4

    @classmethod
    def read(cls, rank: Any, core: Any, bits: Any, with_base: bool) -> "Form":
        """Returns the form that arguments of `superpose()` ask for.

        Raises:
            TypeError: One of them is not of its type.
            ValueError: One of them is outside of its range, or `bits` is for a part
                that does not exist.
        """
        if rank is None and core is None:
            rank = FULL
        rank = 0 if rank is None else check_rank(rank)
        core = None if core is None else check_core(core)
        parts = {
            "base": with_base or rank != FULL,
            "core": core is not None,
            "rank": bool(rank),
        }
        few = check_bits_of(DEFAULT_BITS if bits is None else bits, parts)
        given = {name: few[name] or DEFAULT_BITS for name in parts}
        base = given["base"] if parts["base"] else 0
        return cls(base, core, given["core"], rank, given["rank"])

    def within(self, m: int, n: int) -> "Form":
        """Returns the form for kernels `(m, n)` that may be too narrow for it.

        The core is then smaller, and a task's own part a whole kernel.
        """
        core, rank = self.core, self.rank
        if core is not None:
            core = min(core[0], m), min(core[1], n)
        if rank and rank != FULL and int(rank) >= min(m, n):
            rank = FULL
        return dataclasses.replace(self, core=core, rank=rank)

    def count_bits(self, m: int, n: int, num_tasks: int) -> int:
        """Returns the memory of kernels `(m, n)` of all tasks, in bits."""
        total = 0
        if self.base:
            total += 8 * packed_size(m * n, self.base) + SCALE_BITS * n
        if self.core is not None:
            first, second = self.core
            shared = (m * first, n * second)
            total += sum(8 * packed_size(each, self.core_bits) for each in shared)
            total += SCALE_BITS * (first + second + num_tasks)
            total += 8 * num_tasks * packed_size(first * second, self.core_bits)
        if self.rank == FULL:
            each = 8 * packed_size(m * n, self.rank_bits) + SCALE_BITS * n
            total += num_tasks * each
        elif self.rank:
            rank = int(self.rank)
            each = 8 * packed_size(m * rank, self.rank_bits)
            each += 8 * packed_size(n * rank, self.rank_bits) + SCALE_BITS * rank
            total += num_tasks * each
        return total


@dataclasses.dataclass
class Wanted:
    """The kernels of all tasks for one layer.

    Attributes:
        kernels: float32 array `(K, M, N)`: the best kernel for the task's inputs.
        grams: float32 array `(K, M, M)`: the mean products G_k of these inputs,
            positive definite.
        outputs: float32 array `(K, N, N)`: the mean products H_k of the derivatives of
            the model's answers by the layer's outputs, positive definite. An error E of
            kernel k counts as `tr(H_k E^T G_k E)`. Defaults to the identity.
    """

    kernels: np.ndarray
    grams: np.ndarray
    outputs: Any = None

    def __post_init__(self) -> None:
        if self.outputs is None:
            num_tasks, _, n = self.kernels.shape
            every = (num_tasks, n, n)
            self.outputs = np.broadcast_to(np.eye(n, dtype="float32"), every)

    def of(self, kernels: np.ndarray, number: int | None = None) -> "Wanted":
        """Returns the same with other kernels, of the first tasks if there is a number.

        Args:
            kernels: The kernels, of all tasks or of the first ones.
            number: Integer, or `None` for all.
        """
        return Wanted(kernels[:number], self.grams[:number], self.outputs[:number])

    @functools.cached_property
    def mean_gram(self) -> np.ndarray:
        """The mean products over all tasks."""
        return self.grams.mean(0)

    @functools.cached_property
    def mean_outputs(self) -> np.ndarray:
        """What outputs count, in the mean over all tasks."""
        return self.outputs.mean(0)

    @functools.cached_property
    def shared_rounding(self) -> Rounding:
        """Rounds what all tasks share."""
        return Rounding(self.mean_gram)

    @functools.cached_property
    def own_rounding(self) -> Rounding:
        """Rounds what each task has of its own."""
        return Rounding(self.grams)

    @functools.cached_property
    def energy(self) -> np.ndarray:
        """How much each task's kernel counts, `(K,)`."""
        return self.error(self.kernels)

    def center(self, kernels: np.ndarray) -> np.ndarray:
        """Returns the kernel `(M, N)` nearest to all, if all outputs count alike."""
        right = np.einsum("kij,kjn->in", self.grams, kernels, optimize=True)
        return _solve(self.grams.sum(0), right)

    def error(self, errors: np.ndarray) -> np.ndarray:
        """Returns how much the errors of each task's kernel count, `(K,)`."""
        products = (self.grams @ errors) * (errors @ self.outputs)
        return products.sum((1, 2), dtype="float64")


@dataclasses.dataclass
class Parts:
    """What a layer holds: for each part its codes and scales.

    Attributes:
        form: The `Form`.
        num_tasks: Integer K.
        base: Dictionary of what the part's `set_codes()` takes, or `None`.
        core: Likewise.
        rank: Likewise.
    """

    form: Form
    num_tasks: int
    base: Any = None
    core: Any = None
    rank: Any = None

    def kernels(self) -> np.ndarray:
        """Returns the kernels of all tasks, `(K, M, N)`."""
        total: Any = 0.0
        if self.base is not None:
            total = np.stack([self.base_kernel()] * self.num_tasks)
        if self.core is not None:
            total = total + self.core_kernels()
        if self.rank is not None:
            total = total + self.rank_kernels()
        return total

    def base_kernel(self) -> np.ndarray:
        """Returns the base, `(M, N)`."""
        return rounded(self.base["codes"], self.base["scale"], self.form.base)

    def core_factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns A, `(M, R_in)`, and V, `(N, R_out)`."""
        bits, core = self.form.core_bits, self.core
        first = rounded(core["first"], core["first_scale"], bits)
        second = rounded(core["second"], core["second_scale"][:, None], bits)
        return first, second.T

    def core_kernels(self) -> np.ndarray:
        """Returns what the cores give to each task's kernel, `(K, M, N)`."""
        scale = self.core["core_scale"][:, None, None]
        core = rounded(self.core["core"], scale, self.form.core_bits)
        left, right = self.core_factors()
        return left @ core @ right.T

    def rank_kernels(self) -> np.ndarray:
        """Returns what is each task's own in its kernel, `(K, M, N)`."""
        scale = self.rank["scale"][:, None]
        left = rounded(self.rank["first"], scale, self.form.rank_bits)
        if self.rank["second"] is None:
            return left
        return left @ decode(self.rank["second"], self.form.rank_bits)


def fit(form: Form, wanted: Wanted, rounds: int = 2) -> Parts:
    """Fits all parts of a form: each to what the others leave, in turn.

    Args:
        form: The `Form`.
        wanted: What is to be kept.
        rounds: Integer, how often each part is fitted.
    """
    parts = Parts(form, len(wanted.kernels))
    present = [name for name in ("base", "core", "rank") if getattr(form, name)]
    if len(present) < 2:
        rounds = 1
    held: dict[str, Any] = dict.fromkeys(present, 0.0)
    for _ in range(rounds):
        for name in present:
            rest = wanted.kernels - sum(held[each] for each in present if each != name)
            setattr(parts, name, _FITS[name](form, wanted, rest))
            if name == "base":
                held[name] = parts.base_kernel()
            else:
                held[name] = getattr(parts, f"{name}_kernels")()
    return parts


def fit_more(shared: Parts, wanted: Wanted) -> Parts:
    """Fits the parts of more tasks, where what all tasks share stays as it is.

    Args:
        shared: The `Parts` of the present tasks.
        wanted: What is to be kept of the new tasks.
    """
    form = shared.form
    parts = Parts(form, len(wanted.kernels), shared.base)
    rest = wanted.kernels
    if shared.base is not None:
        rest = rest - parts.base_kernel()
    if shared.core is not None:
        left, right = shared.core_factors()
        cores = core_of(wanted.of(rest), left, right)
        codes, scale = _round_cores(cores, wanted.grams, left, form.core_bits)
        parts.core = {**shared.core, "core": codes, "core_scale": scale[:, 0, 0]}
        rest = rest - parts.core_kernels()
    if form.rank:
        parts.rank = _fit_rank(form, wanted, rest)
    return parts


def _fit_base(form, wanted, rest):
    codes, scale = wanted.shared_rounding.round(wanted.center(rest), form.base)
    return {"codes": codes, "scale": scale[0]}


def _fit_rank(form, wanted, rest):
    """Codes of the factors that keep most of `rest`.

    They begin with the principal directions of each task's outputs. The first factor is
    rounded, and the second fitted to what it can give and rounded; and once more.
    """
    grams, outputs, bits = wanted.grams, wanted.outputs, form.rank_bits
    counts = np.diagonal(outputs, axis1=-2, axis2=-1)[:, None]
    if form.rank == FULL:
        codes, scale = wanted.own_rounding.round(rest, bits)
        return {"first": codes, "second": None, "scale": scale[:, 0]}
    seen = rest @ np.linalg.cholesky(outputs)
    left = seen @ _leading(transpose(seen) @ (grams @ seen), form.rank)
    for _ in range(2):
        codes, scale = wanted.own_rounding.round(left, bits)
        fixed = rounded(codes, scale, bits)
        inner = transpose(fixed) @ grams
        small = _regular(inner @ fixed)
        second = _solve(small, inner @ rest)
        rounding, sizes = Rounding(small), best_scale(second, bits, -1, counts)
        others, other_scale = rounding.round(second, bits, sizes)
        fitted = rounded(others, other_scale, bits)
        inner = fitted @ outputs
        small = _regular(inner @ transpose(fitted))
        left = transpose(_solve(small, inner @ transpose(rest)))
    scale = scale[:, 0] * other_scale[..., 0]
    return {"first": codes, "second": others, "scale": scale}


def _fit_core(form, wanted, rest):
    """Codes of the bases, which all tasks share, and of the cores.

    V begins with the principal directions of all tasks' outputs, and A with those of
    what they need of the inputs. A, V and the cores are rounded in turn, each fitted to
    what the others, as they are rounded, leave to it.
    """
    grams, bits, outputs = wanted.grams, form.core_bits, wanted.mean_outputs
    first, second = form.core
    left, right = shared_directions(wanted.of(rest), first, second)
    cores = core_of(wanted.of(rest), left, right)
    # Cores of even size everywhere waste no codes: the bases take up the sizes.
    rows, columns = _even_out(np.sqrt(np.mean(np.square(cores), 0)))
    left, right = left * rows, right * columns
    right = rounded(*Rounding(outputs).round(right, bits), bits)
    for i in range(2):
        if i > 0:
            seen = cores @ right.T
            weighted = seen @ outputs
            small = np.einsum("krn,ksn->rs", weighted, seen, optimize=True)
            bound = np.einsum("krn,kmn->rm", weighted, rest, optimize=True)
            small = _regular(small)
            left = _solve(small, bound).T
        left_codes, left_scale = wanted.shared_rounding.round(left, bits)
        left = rounded(left_codes, left_scale, bits)
        cores = core_of(wanted.of(rest), left, right)
        codes, scale = _round_cores(cores, grams, left, bits)
        cores = rounded(codes, scale, bits)
        seen = left @ cores
        weighted = grams @ seen
        small = np.einsum("kmr,kms->rs", seen, weighted, optimize=True)
        bound = np.einsum("kmr,kmn->rn", weighted, rest, optimize=True)
        small = _regular(small)
        right = _solve(small, bound)
        sizes = best_scale(right, bits, -1, np.diagonal(outputs))
        rounding = Rounding(small)
        right_codes, right_scale = rounding.round(right, bits, sizes)
        right = rounded(right_codes, right_scale, bits).T
    return {
        "first": left_codes,
        "second": right_codes,
        "core": codes,
        "first_scale": left_scale[0],
        "second_scale": right_scale[:, 0],
        "core_scale": scale[:, 0, 0],
    }


_FITS = {"base": _fit_base, "core": _fit_core, "rank": _fit_rank}


def shared_directions(
    wanted: Wanted, first: int, second: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns bases `(M, first)` and `(N, second)` of all tasks' kernels."""
    upper = np.linalg.cholesky(wanted.mean_outputs)
    seen = wanted.kernels @ upper
    moments = sum(d.T @ g @ d for d, g in zip(seen, wanted.grams, strict=True))
    right = _leading(moments, second)
    lower = np.linalg.cholesky(wanted.mean_gram)
    seen = lower.T @ (seen @ right)
    moments = np.einsum("kmr,knr->mn", seen, seen, optimize=True)
    left = _solve(lower.T, _leading(moments, first))
    return left, _solve(upper.T, right)


def transpose(matrices: np.ndarray) -> np.ndarray:
    """Returns matrices `(..., M, N)` as `(..., N, M)`."""
    return np.swapaxes(matrices, -1, -2)


def core_of(wanted: Wanted, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the cores of the least error for given bases."""
    inner, weighted = left.T @ wanted.grams, wanted.mean_outputs @ right
    bound = inner @ (wanted.kernels @ weighted)
    cores = _solve(_regular(inner @ left), bound)
    small = _regular(right.T @ weighted)
    return transpose(_solve(small, transpose(cores)))


def _round_cores(cores, grams, left, bits):
    rounding = Rounding(_regular(left.T @ grams @ left))
    return rounding.round(cores, bits, best_scale(cores, bits, (-2, -1)))


def _even_out(sizes):
    """Factors of rows and columns, divided by which a matrix has even ones."""
    squares = np.square(sizes) + 1e-6 * np.mean(np.square(sizes)) + 1e-60
    rows, columns = np.ones(len(squares)), np.ones(squares.shape[1])
    for _ in range(20):
        rows = np.mean(squares / columns, 1)
        columns = np.mean(squares / rows[:, None], 0)
    return np.sqrt(rows).astype(sizes.dtype), np.sqrt(columns).astype(sizes.dtype)


def _solve(gram, right):
    return np.linalg.solve(gram.astype("float64"), right).astype(right.dtype)


def _leading(moments, number):
    return np.linalg.eigh(moments)[1][..., : -number - 1 : -1]


def _regular(gram):
    size = gram.shape[-1]
    trace = np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    return gram + (1e-6 * trace / size + 1e-30) * np.eye(size)
