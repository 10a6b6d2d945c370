"""The parts that a config names: built in, or registered by you."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from keras_psp.contexts import FAMILIES
from keras_psp.contexts import Context
from keras_psp.datasets import SOURCES
from keras_psp.datasets import Source
from keras_psp.datasets import load_source

# Functions of a compiled model, the stream of batches and the options of `fit()`.
TRAININGS: dict[str, Callable] = {
    "fit": lambda model, stream, **options: model.fit(stream, **options)
}
# Functions of a task sequence and a config that return a model. Each experiment has
# one of its own besides.
MODELS: dict[str, Callable] = {}

# By the field of a config that names them; `config.py` adds the consolidations.
PARTS: dict[str, dict[str, Any]] = {
    "source": SOURCES,
    "context": FAMILIES,
    "training": TRAININGS,
    "model": MODELS,
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_added: dict[tuple[str, str], Any] = {}  # What is yours, by kind and name.


def check_part_name(name: str) -> str:
    """Returns a name that may be a part of a folder's name; raises for another."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "`name` must be a word of letters, digits, `_`, `.` and `-`. Received: "
            f"name={name!r}"
        )
    return name


def add_part(kind: str, name: str, value: Any) -> None:
    """Checks a part and enters it under a name.

    Raises:
        TypeError: `value` is no such part.
        ValueError: `name` is no name for a folder.
    """
    PARTS[kind][check_part_name(name)] = _CHECKS[kind](name, value)
    _added[kind, name] = value


def is_added(kind: str, name: str) -> bool:
    """Whether a part was added under this name, and is not built in."""
    return (kind, name) in _added


def added_parts() -> dict[tuple[str, str], Any]:
    """Returns what is yours, by kind and name."""
    return dict(_added)


def add_missing_parts(parts: dict[tuple[str, str], Any]) -> None:
    """Enters parts of another process that are not here yet."""
    for (kind, name), value in parts.items():
        if (kind, name) not in _added:
            add_part(kind, name, value)


def find_name(kind: str, value: Any) -> str:
    """Returns the name of a part that is given as an object, and enters it.

    The same definition again, as when a cell of a notebook runs twice, replaces it.

    Raises:
        TypeError: The object has no name, or is no such part.
        ValueError: Another part has its name.
    """
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TypeError(
            f"`{kind}` must be a name, or an object that has one. Name yours with "
            f"`keras_psp.benchmarks.register({kind!r}, name, value)`. Received: "
            f"{kind}={value!r}"
        )
    before = _added.get((kind, name))
    if before is value:
        return name
    if name in PARTS[kind] and not _same_place(before, value):
        raise ValueError(
            f"There is another {kind} of this name. Register yours under another, "
            f"with `keras_psp.benchmarks.register`. Received: {kind}={value!r}"
        )
    add_part(kind, name, value)
    return name


def _same_place(one: Any, other: Any) -> bool:
    places = [
        (x.__module__, x.__qualname__)
        for x in (one, other)
        if hasattr(x, "__qualname__")
    ]
    return len(places) == 2 and places[0] == places[1]


def _check_source(name: str, value: Any) -> Callable[[], Source]:
    if callable(value):
        return lambda: dataclasses.replace(load_source(value()), name=name)
    source = dataclasses.replace(load_source(value), name=name)
    return lambda: source


def _check_context(name: str, value: Any) -> type[Context]:
    if not isinstance(value, type) or not issubclass(value, Context):
        raise TypeError(
            "A context must be a subclass of `keras_psp.contexts.Context`. Received: "
            f"{name}={value!r}"
        )
    return value


def _check_callable(name: str, value: Any) -> Callable:
    if not callable(value):
        raise TypeError(f"A part must be callable. Received: {name}={value!r}")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "source": _check_source,
    "context": _check_context,
    "consolidation": lambda name, value: (_check_callable(name, value), {}),
    "training": _check_callable,
    "model": _check_callable,
}
