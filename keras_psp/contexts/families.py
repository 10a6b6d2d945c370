"""The context families by name."""

from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp.contexts.binary import Binary
from keras_psp.contexts.complex import Complex
from keras_psp.contexts.context import Context
from keras_psp.contexts.fast_rotation import FastRotation
from keras_psp.contexts.hadamard import Hadamard
from keras_psp.contexts.householder import Householder
from keras_psp.contexts.identity import Identity
from keras_psp.contexts.permutation import Permutation
from keras_psp.contexts.powers import Powers
from keras_psp.contexts.rotation import Rotation
from keras_psp.contexts.signed_permutation import SignedPermutation

FAMILIES = {
    "identity": Identity,
    "binary": Binary,
    "hadamard": Hadamard,
    "complex": Complex,
    "powers": Powers,
    "rotation": Rotation,
    "fast_rotation": FastRotation,
    "householder": Householder,
    "permutation": Permutation,
    "signed_permutation": SignedPermutation,
}


def get(
    identifier: Any, num_tasks: int | None = None, seed: int = 0, **kwargs: Any
) -> Context:
    """Returns the context that `identifier` names.

    Args:
        identifier: A family's name (one of `keras_psp.contexts.FAMILIES`), the
            serialized form of a context (a `dict`), or a `Context`.
        num_tasks: Positive integer, the number of tasks. Needed with a name; with
            anything else it must agree, if it is given.
        seed: Integer, with a name: equal seeds give equal contexts, on every backend.
        **kwargs: With a name, further arguments of the family (`learnable`, `storage`).

    Returns:
        A `Context`.

    Raises:
        TypeError: `identifier` is none of these, or `num_tasks` not an integer.
        ValueError: Unknown family, or numbers of tasks that disagree.

    Example:

    >>> import keras_psp
    >>> keras_psp.contexts.get("binary", num_tasks=10).num_tasks
    10
    """
    if num_tasks is not None:
        num_tasks = check_integer("num_tasks", num_tasks)
    if isinstance(identifier, str):
        check_name("context family", identifier, FAMILIES)
        if num_tasks is None:
            raise ValueError(
                "`num_tasks` must be given with a context family's name. "
                f"Received: context={identifier!r}, num_tasks=None"
            )
        return FAMILIES[identifier](num_tasks, seed=seed, **kwargs)
    context = identifier
    if isinstance(context, dict):
        context = keras.saving.deserialize_keras_object(context)
    if not isinstance(context, Context):
        raise TypeError(
            "A context must be the name of a family, a `Context`, or its serialized "
            f"form. Received: context={identifier!r} (of type "
            f"{type(identifier).__name__})"
        )
    if num_tasks not in (None, context.num_tasks):
        raise ValueError(
            "`num_tasks` and the context must agree. Received: "
            f"num_tasks={num_tasks}, and a context of {context.num_tasks} tasks"
        )
    return context


def series(
    context: Any,
    num_tasks: int | None,
    number: Any,
    learnable: bool = False,
    seed: int = 0,
) -> list:
    """Returns contexts that differ by their seeds alone, one for each layer of a model.

    Args:
        context: Name of a context family, or a `Context` that shows what each is to be.
        num_tasks: Positive integer, the number of tasks.
        number: Integer, how many contexts.
        learnable: Boolean, with a family's name: whether the contexts are trained.
        seed: Non-negative integer. Equal seeds give equal contexts.

    Returns:
        A list of `Context`s.
    """
    example = get(context, num_tasks=num_tasks, learnable=learnable)
    seeds = np.random.SeedSequence(seed).generate_state(number).tolist()
    return [
        type(example).from_config(
            {**example.get_config(), "seed": seed, "name": "context"}
        )
        for seed in seeds
    ]
