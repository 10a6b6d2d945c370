"""Adapters of one base: the kernels' differences as factors of each task's own."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._reading.counterparts import least_side
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.plan import Plan
from keras_psp._reading.plan import same_leaves
from keras_psp._reading.rows import kernel_rows
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_rows import TaskRows
from keras_psp.surgery._build_superposed import build_superposed

FLOATS = 32  # The bits of numbers that are not rounded.


def keep_factors(
    read: Graph | OwnCode, plan: Plan, alike: Sequence[tuple], rank: Any
) -> Any:
    """Returns models and their base in one: the base as it is, and factors a task.

    ```
    W_k = W_0 + A_k B_k
    ```

    Args:
        read: What `read_model()` returns of the first model.
        plan: What becomes of its layers.
        alike: Tuples of the layers that stand for one another, the base's last.
        rank: Positive integer. Of differences of a higher rank, the factors give the
            nearest.
    """
    rank = check_integer("rank", rank)
    num_tasks = len(alike[0]) - 1

    def new_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
        most = min(rank, least_side(layer))
        return make_superposed(
            layer, num_tasks, lambda: None, True, "kernel", rank=most
        )

    one, pairs = build_superposed(read, plan, new_layer, num_tasks)
    same = same_leaves(alike)
    for layer, held in pairs:
        if not isinstance(held, (Superposed, TaskRows)):
            copy_weights(layer, held)
            continue
        *models, base = same[id(layer)]
        set_task_weights(held, models)
        set_new_rows(held, base)
        if isinstance(held, Superposed):
            held.base_kernel.assign(base.get_weights()[0])
            hold_factors(held, models, range(num_tasks))
    return one


def has_factors(layer: Superposed) -> bool:
    """Whether a layer holds a base and factors of low rank alone, as floats."""
    return (
        layer.context is None
        and layer.core is None
        and layer.base is not None
        and layer.low_rank is not None
        and layer.base.bits is None
        and layer.low_rank.bits is None
        and not layer.low_rank.is_full
    )


def hold_factors(
    layer: Superposed, plain: Sequence[keras.layers.Layer], tasks: Sequence[int]
) -> None:
    """Gives tasks the factors of what plain layers' kernels add to the base."""
    parts: Any = layer.low_rank
    first = ops.convert_to_numpy(parts.first).copy()
    second = ops.convert_to_numpy(parts.second).copy()
    base = kernel_rows(layer, layer.base_kernel)
    for task, each in zip(tasks, plain, strict=True):
        change = kernel_rows(layer, each.kernel) - base
        left, sizes, right = np.linalg.svd(change, full_matrices=False)
        roots = np.sqrt(sizes[: parts.rank])
        first[task] = left[:, : parts.rank] * roots
        second[task] = roots[:, None] * right[: parts.rank]
    parts.first.assign(first)
    parts.second.assign(second)
