"""Hadamard matrices: Sylvester's, Paley's, and their Kronecker products.

A Hadamard matrix H of order n has elements -1 and +1 and H H^T = n I. Whether there is
one for every n that is a multiple of four nobody knows; below 1000 the constructions
here miss 92, 116 and some fifty more.
"""

import functools
import itertools
from typing import Any

import numpy as np


@functools.cache
def orders_around(n: int) -> Any:
    """Returns the largest order up to `n`, and the smallest from `n` on."""
    return (
        next(m for m in range(n, 0, -1) if _factors(m)),
        next(m for m in itertools.count(n) if _factors(m)),
    )


def rows(order: Any, numbers: Any) -> Any:
    """Returns some rows of a Hadamard matrix.

    Args:
        order: Integer, an order that is at hand.
        numbers: Integers in `[0, order)`, which rows.

    Returns:
        int8 array of shape `(len(numbers), order)`.
    """
    factors = _factors(order)
    result = np.ones((len(numbers), 1), "int8")
    for n, digits in zip(factors, np.unravel_index(numbers, factors), strict=True):
        # Kronecker's product, row by row: the whole matrix may be far too large.
        result = result[:, :, np.newaxis] * _atom(n)[digits][:, np.newaxis]
        result = result.reshape(len(numbers), -1)
    return result


@functools.cache
def _factors(n):
    """Orders of the matrices whose Kronecker product has order n, or `None`."""
    if n < 3:
        return (n,)
    if n % 4:
        return None
    if n & (n - 1) == 0:
        return (2, *_factors(n // 2))
    if _paley(n):
        return (n,)
    for d in range(4, n // 2 + 1):
        if n % d == 0 and _paley(d) and _factors(n // d):
            return (d, *_factors(n // d))
    return (2, *_factors(n // 2)) if _factors(n // 2) else None


def _paley(n):
    """Which of Paley's constructions gives order n, and its prime power; or `None`."""
    if n % 4 == 0 and _prime_power(n - 1):
        return 1, n - 1
    if n % 4 == 0 and n // 2 % 4 == 2 and _prime_power(n // 2 - 1):
        return 2, n // 2 - 1
    return None


@functools.cache
def _atom(n):
    if n < 3:
        return np.array([[1, 1], [1, -1]], "int8")[:n, :n]
    construction, q = _paley(n)
    differences = _legendre(q)
    core = np.zeros((q + 1, q + 1), "int8")
    core[0, 1:] = 1
    core[1:, 0] = -1 if construction == 1 else 1
    core[1:, 1:] = differences
    eye = np.eye(q + 1, dtype="int8")
    if construction == 1:
        return core + eye
    return np.kron(core, [[1, 1], [1, -1]]) + np.kron(eye, [[1, -1], [-1, -1]])


def _legendre(q):
    """chi(a - b) for all a, b of the field of q elements: 1 if it is a square."""
    p, n = _prime_power(q)
    powers = _powers_of_a_generator(p, n)
    squares = np.zeros(q, "int8")
    squares[powers] = np.where(np.arange(q - 1) % 2 == 0, 1, -1)
    digits = np.stack(np.unravel_index(np.arange(q), (p,) * n), axis=-1)
    number = p ** np.arange(n)[::-1]
    return np.stack([squares[(digits[a] - digits) % p @ number] for a in range(q)])


def _powers_of_a_generator(p, n):
    """All elements but 0 of the field of p^n elements, as powers of one of them.

    An element is a polynomial over the integers modulo p, written as the number whose
    digits to base p are its coefficients. A polynomial f of degree n is primitive if
    the powers of x modulo f run through all elements but 0.
    """
    q, high = p**n, p ** (n - 1)
    for tail in range(1, q):
        # x^n = tail modulo f; without a constant term x has no inverse.
        if tail % p == 0:
            continue
        digits = [tail // p**i % p for i in range(n)]
        powers, element = [], 1
        while len(powers) < q - 1:
            powers.append(element)
            lead, rest = divmod(element, high)
            element = sum(
                ((rest * p // p**i % p) + lead * digits[i]) % p * p**i for i in range(n)
            )
            if element in (0, 1):
                break
        if len(powers) == q - 1:
            return np.array(powers)
    raise ValueError(f"There is no field of {p}^{n} elements.")


def _prime_power(q):
    """Returns `(p, n)` with p prime and q = p^n, or `None`."""
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    n = 0
    while q > 1 and q % p == 0:
        q, n = q // p, n + 1
    return (p, n) if q == 1 and n else None
