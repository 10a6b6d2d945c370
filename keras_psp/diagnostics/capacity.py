"""How many tasks there is room for."""

import math
from dataclasses import dataclass
from typing import Any

import keras

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp._core.table import Shown
from keras_psp._reading.task_layers import find_superposed_layers
from keras_psp.contexts import Identity
from keras_psp.diagnostics import _plots as plots

# How many times as much interference leaves as much, by what consolidates tasks.
ROOM = {"none": 1, "gram": 2}


@dataclass(frozen=True)
class LayerCapacity:
    """How many tasks one layer has room for.

    Attributes:
        name: The layer's; or its width, if that is all that was given.
        width: Integer, the number M of inputs that its context binds.
        limit: How many tasks its context family can hold at all, or `None`.
        room: How many times the tolerance the interference may be, because tasks are
            consolidated.
    """

    name: str
    width: int
    limit: int | None = None
    room: int = 1

    def num_tasks(self, tolerance):
        """Returns the largest K with `(K - 1) / (room M)` within the tolerance."""
        # Rounded, because 0.29 * 100 is 28.999999999999996.
        number = 1 + math.floor(round(tolerance * self.room * self.width, 9))
        return number if self.limit is None else min(number, self.limit)


@dataclass(frozen=True)
class Capacity(Shown):
    """How many tasks a model has room for; as text, a table.

    Attributes:
        tolerance: Float, the interference that is tolerated.
        layers: Tuple of a `LayerCapacity` for each superposed layer.
    """

    tolerance: float
    layers: tuple

    @property
    def num_tasks(self):
        """How many tasks the narrowest layer has room for."""
        return min(layer.num_tasks(self.tolerance) for layer in self.layers)

    @property
    def rows(self):
        """A dictionary for each layer: width M and how many tasks it has room for."""
        return [
            {"layer": x.name, "M": x.width, "tasks": x.num_tasks(self.tolerance)}
            for x in self.layers
        ]

    def plot(self, path=None):
        """Draws the number of tasks against the tolerance, for each width.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        return plots.save(plots.draw_capacity(self), path)

    def __str__(self):
        rows = [tuple(row.values()) for row in self.rows]
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}       M   tasks"]
        lines += [f"{name:{width}}  {m:6}  {number:6}" for name, m, number in rows]
        return "\n".join(lines)


def capacity(
    model_or_widths: Any, tolerance: float = 0.05, consolidation: str = "none"
) -> Capacity:
    """Estimates how many tasks layers have room for, at a tolerated interference.

    ```
    K = 1 + floor(tolerance room M)
    ```

    This is the largest K for which the interference is within the tolerance. Random
    orthogonal contexts are predicted to have the interference `(K - 1) / M`. If tasks
    are consolidated, it may be `room` times the tolerance. What the tolerance means was
    measured on permuted MNIST, in perceptrons with binary contexts that learned task
    after task. This much of its accuracy when just trained a task has kept after K - 1
    others, in %:

    | (K - 1) / M | the paper (width) | here (widths)     |
    |-------------|-------------------|-------------------|
    | 0.0045      |                   | 99.7 (2000)       |
    | 0.025       | 98 (2048)         | 98, 98 (128, 256) |
    | 0.05        | 92 (1024)         | 96, 95 (128, 256) |
    | 0.1         | 79 (512)          | 90, 86 (128, 256) |
    | 0.2         | 60 (256)          | 75 (128)          |
    | 0.38        | 38 (128)          | 56 (128)          |

    The paper's column is read off its figure 4, the first of 50 tasks, against 96 %;
    ours is the mean over all tasks that have had as many after them, of one seed, three
    hidden layers (for 2000 two) and 1000 steps a task. M is the hidden layers' width;
    the image has 784 pixels, so that in the widest networks the first layer has less
    room. So the default, 0.05, keeps nine tenths or more there. It is a guide, no
    promise: what is learned together, tasks that are alike, and models that are
    finished and then superposed differ, and so do families whose contexts are not as
    random ones (permutations without signs, few reflections), of which `interference()`
    tells more.

    `room` is 2 with `Gram`, of which the new tasks suffer more than the old ones. So
    here it is the mean over the K tasks so far, of what the first had by itself, in %
    (rows of the `matrix` in the runs' `result.json`, between two K linearly; 3 seeds at
    256 up to 0.19, else one):

    | (K - 1) / M | none (256) | `Gram` (128, 256, 512) |
    |-------------|------------|------------------------|
    | 0.02        | 99.4       | 99.8, 99.7, 99.7       |
    | 0.05        | 98.2       | 99.5, 99.3, 99.2       |
    | 0.1         | 95.3       | 98.7, 98.3             |
    | 0.19        | 87.1       | 97.0, 96.5             |
    | 0.38        |            | 93.0, 92.4             |

    Both tables were transcribed from release 0.1.0, whose raw runs were not kept
    (`tools/results/capacity.json` and `capacity-gram.json`).

    Args:
        model_or_widths: `keras_psp.models.TaskModel`; or a list of positive integers,
            the number M of inputs that the context of each layer binds (for a
            convolution `kernel_size[0] * kernel_size[1] * in / groups`).
        tolerance: Non-negative float. Defaults to 0.05.
        consolidation: What keeps earlier tasks while a task is trained: `"none"`, or
            `"gram"` for `keras_psp.consolidation.Gram`.

    Returns:
        A `Capacity`: `num_tasks`, of the layer that has least room; its `layers`, which
        have a `name`, a `width` and `num_tasks(tolerance)`, no more than their context
        family can hold (and 1 for `Identity`); and `plot(path=None)`. One narrow layer
        need not spoil a model: see which one it is that has least.

    Raises:
        TypeError: `model_or_widths` is neither, a width is not an integer, or
            `tolerance` not a number.
        ValueError: The model has no superposed layer, there is no width, one is not
            positive, `tolerance` is negative or not finite, or `consolidation` is
            neither of those.

    Example:

    >>> import keras_psp
    >>> keras_psp.diagnostics.capacity([1024]).num_tasks
    52
    >>> keras_psp.diagnostics.capacity([1024], consolidation="gram").num_tasks
    103
    >>> model = keras_psp.models.mlp((64,), 10, num_tasks=2, units=256, depth=1)
    >>> result = keras_psp.diagnostics.capacity(model)
    >>> [(layer.name, layer.num_tasks(0.05)) for layer in result.layers]
    [('dense_0', 4), ('logits', 13)]
    >>> result.num_tasks
    4

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), figure 4.
    """
    tolerance = check_number("tolerance", tolerance)
    room = ROOM[check_name("consolidation", consolidation, ROOM)]
    if isinstance(model_or_widths, keras.Model):
        layers = [
            (layer.name, *_width_and_limit(layer.context))
            for layer in find_superposed_layers(model_or_widths)
        ]
    else:
        layers = [(str(width), width, None) for width in _check(model_or_widths)]
    kept = tuple(
        LayerCapacity(name, width, limit, room) for name, width, limit in layers
    )
    return Capacity(tolerance, kept)


def _width_and_limit(context):
    width = context.input_spec.axes[-1]
    if isinstance(context, Identity):
        return width, 1  # Which tells no tasks apart.
    return width, context.max_num_tasks(width)


def _check(widths):
    """Returns the widths as a list of integers."""
    if isinstance(widths, (str, bytes)) or not hasattr(widths, "__iter__"):
        raise TypeError(
            "`model_or_widths` must be a `keras_psp.models.TaskModel` or a list of "
            f"integers. Received: model_or_widths={widths!r}"
        )
    widths = [check_integer("width", width) for width in widths]
    if not widths:
        raise ValueError("`model_or_widths` must hold at least one width. Received: []")
    return widths
