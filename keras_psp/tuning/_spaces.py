"""Which fields of a config are searched, and over which choices."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_psp._core.checks import check_name
from keras_psp.benchmarks.config import Config

# The default space; an experiment searches the fields that it has.
CHOICES = {
    "context": ("binary", "hadamard", "powers", "fast_rotation", "signed_permutation"),
    "context_over": ("kernel", "channels"),
    "units": (64, 128, 256, 512),
    "depth": (1, 2, 3),
    "width": (0.125, 0.25, 0.5, 1.0),
    "consolidation": ("none", "ewc", "si", "gram"),
    "optimizer": ("adam", "rmsprop"),
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
    "schedule": ("constant", "cosine"),
}
# These fields say what is learned, and how much: accuracies of runs that differ in one
# of them cannot be compared. Or they set other fields.
FIXED = (
    *("source", "tasks", "steps", "cycles", "classes_per_task", "seed"),
    *("separate", "joint", "recipe", "protocol"),
)


def default_space(experiment: Config | type[Config]) -> dict[str, Sequence]:
    """Returns the space that is searched by default.

    Args:
        experiment: A config, or one of the values of
            `keras_psp.benchmarks.EXPERIMENTS`.

    Returns:
        Choices by name of the field.

    Example:

    >>> from keras_psp import benchmarks, tuning
    >>> tuning.default_space(benchmarks.PermutedConfig)["depth"]
    (1, 2, 3)
    """
    names = {field.name for field in dataclasses.fields(experiment)}
    return {name: choices for name, choices in CHOICES.items() if name in names}


def check_space(config: Config, space: Mapping[str, Sequence]) -> dict[str, list]:
    """Returns a space in the order of the config's fields, with choices of their types.

    Raises:
        TypeError: The choices of a field are no list, or a choice is of another type.
        ValueError: An unknown field, a field that may not be searched, no choices, the
            same choice twice, or a choice that the config refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(config) if f.name not in FIXED}
    if not space:
        raise ValueError("A search needs at least one hyperparameter.")
    for name, choices in space.items():
        if name in FIXED:
            raise ValueError(
                f"`{name}` cannot be searched: it changes what is learned, or "
                f"other fields. Received: {name}"
            )
        check_name("hyperparameter", name, fields)
        if isinstance(choices, str) or not isinstance(choices, Sequence):
            raise TypeError(
                f"The choices of `{name}` must be a list. Received: {choices!r}"
            )
        if not choices or len({*choices}) < len(choices):
            raise ValueError(
                f"`{name}` needs choices, each of them once. Received: {choices!r}"
            )
        for choice in choices:
            dataclasses.replace(config, **{name: choice})  # Raises.
    types: dict[str, Any] = {name: field.type for name, field in fields.items()}
    return {
        name: [types[name](choice) for choice in space[name]]
        for name in fields
        if name in space
    }
