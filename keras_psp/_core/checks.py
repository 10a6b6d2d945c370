"""The one validator for each kind of argument: names, integers, numbers, shapes."""

import difflib
from collections.abc import Iterable
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from keras_psp_cli.names import check_name as check_name


def check_names(what: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Raises if `given` are not exactly `names`; tells what is missing and unknown.

    Args:
        what: The argument that holds them, for the message.
        given: The names that were given.
        names: The names that there must be.

    Raises:
        ValueError: A name is missing, or one is not among `names`.
    """
    given, names = list(given), list(names)
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if not missing and not unknown:
        return
    hints = [f"{name!r} is missing" for name in missing]
    for name in unknown:
        near = difflib.get_close_matches(str(name), missing, n=1)
        hints.append(
            f"{name!r} is unknown" + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    raise ValueError(
        f"`{what}` must hold the inputs {names}. Received: {given}; {', '.join(hints)}"
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


def check_boolean(name: str, value: bool) -> bool:
    """Returns `value`; raises if it is not a boolean.

    Args:
        name: The argument's name, for the message.
        value: What was given.

    Raises:
        TypeError: It is not a boolean.
    """
    if not isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be a boolean. "
            f"Received: {name}={value!r} (of type {type(value).__name__})"
        )
    return value


def check_list(name: str, value: Any, of: str) -> list:
    """Returns `value` as a list; raises if it is no list, or a single thing.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        of: What the list is of, for the message.

    Raises:
        TypeError: It cannot be iterated over, or is a text, bytes or a dictionary.
    """
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise TypeError(
            f"`{name}` must be a list of {of}. "
            f"Received: {name}={value!r} (of type {type(value).__name__})"
        )
    return list(value)


def check_fewer_tasks(n: int, num_tasks: int) -> int:
    """Returns `n` as an `int`; raises if removing `n` tasks would leave none.

    Args:
        n: How many tasks are to be removed.
        num_tasks: How many tasks there are.

    Raises:
        TypeError: `n` is not an integer.
        ValueError: `n` is not positive, or not less than `num_tasks`.
    """
    n = check_integer("n", n)
    if n >= num_tasks:
        raise ValueError(
            f"`n` must leave at least one of {num_tasks} tasks. Received: n={n}"
        )
    return n


def check_number(
    name: str, value: float, least: float = 0.0, most: float = float("inf")
) -> float:
    """Returns `value` as a float; raises if it is no finite number in that range.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        least: The least that is allowed.
        most: The most that is allowed.

    Raises:
        TypeError: It is not a number, or is a boolean.
        ValueError: It is outside `[least, most]`, NaN or infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (least <= value <= most and value < float("inf")):
        raise ValueError(
            f"`{name}` must be a number in [{least:g}, {most:g}]. "
            f"Received: {name}={value!r}"
        )
    return float(value)


def check_shape(name: str, given: Any, expected: Sequence[int | None]) -> None:
    """Raises if inputs do not have the shape that a model expects.

    Like Keras, it lets a last dimension of 1 be missing, or be one too many.

    Args:
        name: The input's name, for the message.
        given: What has a `shape`. A shape that is not known yet passes.
        expected: The model's shape, with the batch first.

    Raises:
        ValueError: The shapes differ.
    """
    shape = getattr(given, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return  # Not known yet.
    shape, expected = tuple(shape), tuple(expected)
    adjusted = shape
    if len(shape) == len(expected) - 1 and expected[-1] == 1:
        adjusted = (*shape, 1)
    elif len(shape) == len(expected) + 1 and shape[-1] == 1:
        adjusted = shape[:-1]
    if len(adjusted) == len(expected) and _fits(adjusted[1:], expected[1:]):
        return
    raise ValueError(
        f"This model takes inputs {name!r} of shape {expected}. "
        f"Received: shape {shape}"
        + (", one example without a batch" if _fits(shape, expected[1:]) else "")
    )


def _fits(shape: tuple, expected: tuple) -> bool:
    return len(shape) == len(expected) and all(
        a == b or None in (a, b) for a, b in zip(shape, expected, strict=True)
    )
