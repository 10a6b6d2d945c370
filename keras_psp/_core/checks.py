"""The one validator for each kind of argument: names, integers, numbers, shapes."""

import difflib
from collections.abc import Iterable
from numbers import Integral

import numpy as np


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is known, else raises and tells which are, and the nearest.

    Args:
        what: What the name is of, for the message.
        name: The name given.
        known: The names there are.

    Raises:
        ValueError: `name` is not among `known`.
    """
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    raise ValueError(
        f"Unknown {what}. Known: {', '.join(known)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" Received: {name!r}"
    )


def check_integer(name: str, value: int, least: int = 1) -> int:
    """Returns `value` as an `int`; raises if it is no integer of at least `least`.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        least: The least that is allowed.

    Raises:
        TypeError: It is not an integer, or is a boolean.
        ValueError: It is less than `least`.
    """
    kinds = {0: "a non-negative integer", 1: "a positive integer"}
    kind = kinds.get(least, f"an integer of at least {least}")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"`{name}` must be {kind}. "
            f"Received: {name}={value!r} (of type {type(value).__name__})"
        )
    if value < least:
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={value}")
    return int(value)


def check_fewer_tasks(n, num_tasks):
    """Returns `n` as an `int`; raises if no task of `num_tasks` were left without."""
    n = check_integer("n", n)
    if n >= num_tasks:
        raise ValueError(
            f"`n` must leave at least one of {num_tasks} tasks. Received: n={n}"
        )
    return n


def check_number(name, value, least=0.0, most=float("inf")):
    """Returns `value` as a float; raises if it is no finite number in that range."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (least <= value <= most and value < float("inf")):
        raise ValueError(
            f"`{name}` must be a number in [{least:g}, {most:g}]. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_shape(name, given, expected):
    """Raises a `ValueError` if inputs are not of the shape that a model expects."""
    shape = getattr(given, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return  # Not known yet.
    shape = tuple(shape)
    # As Keras lets pass: a last dimension of 1 may be left out, or be one too many.
    adjusted = shape
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        adjusted = (*shape, 1)
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:
        adjusted = shape[:-1]
    pairs = zip(adjusted[1:], expected[1:], strict=False)
    fits = all(a == b or None in (a, b) for a, b in pairs)
    if len(adjusted) == len(expected) and fits:
        return
    raise ValueError(
        f"This model takes inputs {name!r} of shape {tuple(expected)}. "
        f"Received: shape {shape}"
    )
