"""Warnings where tasks will disturb each other: in numbers, with what mends it."""

import warnings

from keras_psp._core.advice import OFF
from keras_psp._core.advice import InterferenceWarning
from keras_psp.contexts import Identity
from keras_psp.layers._superposed import Superposed

# A task keeps about three quarters of its accuracy there; see `diagnostics.capacity`.
LARGE = 0.2


def advise_of_narrow_layers(layers, num_tasks):
    """Warns of layers that bind too few inputs for so many tasks.

    Args:
        layers: The converted layers.
        num_tasks: Positive integer K.
    """
    narrow = []
    for layer in layers:
        if not isinstance(layer, Superposed) or layer.context is None:
            continue
        width = layer.context.input_spec.axes[-1]
        expected = (num_tasks - 1) / width
        if expected >= LARGE and not isinstance(layer.context, Identity):
            narrow.append(
                (expected, f"{layer.name!r} ({width} inputs: {expected:.2f})")
            )
    if narrow:
        narrow.sort(reverse=True)
        others = f" and {len(narrow) - 3} others" if len(narrow) > 3 else ""
        warnings.warn(
            f"Tasks will disturb each other in {', '.join(x for _, x in narrow[:3])}"
            f"{others}: with {num_tasks} tasks of M inputs, what a task reads of the "
            "others is expected to be (K - 1) / M, and at most 0.05 is little. Give "
            "each task a part of its own with `rank=`, or leave these layers out with "
            "`layers=`. `keras_psp.diagnostics.interference(model)` measures it. "
            f"{OFF}",
            InterferenceWarning,
            stacklevel=3,
        )


def advise_of_noise(num_tasks):
    """Warns that kernels that are added up read one another as noise."""
    warnings.warn(
        "Without `base`, `data` and `budget`, each task reads the kernels of the "
        f"{num_tasks - 1} others as noise, of {num_tasks - 1} times the squared size "
        "of its own. Give the model that all were trained from as `base`, a few "
        "hundred inputs of each task as `data`, or the memory that the models may take "
        f"as `budget`. `keras_psp.evaluate` measures what is kept. {OFF}",
        InterferenceWarning,
        stacklevel=3,
    )
