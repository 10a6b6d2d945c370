"""How many tasks there is room for."""

import math
from dataclasses import dataclass

import keras

from keras_psp.consolidation.consolidation import check_number
from keras_psp.contexts import Identity
from keras_psp.contexts.task_index import check_num_tasks
from keras_psp.diagnostics import plots
from keras_psp.diagnostics.superposed_layers import superposed_layers


@dataclass(frozen=True)
class LayerCapacity:
    """How many tasks one layer has room for.

    Attributes:
        name: The layer's; or its width, if that is all that was given.
        width: Integer, the number M of inputs that its context binds.
        limit: How many tasks its context family can hold at all, or `None`.
    """

    name: str
    width: int
    limit: int | None = None

    def num_tasks(self, tolerance):
        """Returns the largest K of which `(K - 1) / M` is no more than `tolerance`."""
        # Rounded, for 0.29 * 100 is 28.999999999999996.
        number = 1 + math.floor(round(tolerance * self.width, 9))
        return number if self.limit is None else min(number, self.limit)


@dataclass(frozen=True)
class Capacity:
    """How many tasks a model has room for; as text, a table.

    Attributes:
        tolerance: Float, the interference that is put up with.
        layers: Tuple of a `LayerCapacity` for each superposed layer.
    """

    tolerance: float
    layers: tuple

    @property
    def num_tasks(self):
        """How many tasks the layer has room for that has least."""
        return min(layer.num_tasks(self.tolerance) for layer in self.layers)

    def plot(self, path=None):
        """Draws the number of tasks against the tolerance, for each width.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        return plots.save(plots.draw_capacity(self), path)

    def __str__(self):
        rows = [
            (each.name, each.width, each.num_tasks(self.tolerance))
            for each in self.layers
        ]
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}       M   tasks"]
        lines += [f"{name:{width}}  {m:6}  {number:6}" for name, m, number in rows]
        return "\n".join(lines)


def capacity(model_or_widths, tolerance=0.05) -> Capacity:
    """TODO."""
    tolerance = check_number("tolerance", tolerance)
    if isinstance(model_or_widths, keras.Model):
        layers = [
            LayerCapacity(layer.name, *_width_and_limit(layer.context))
            for layer in superposed_layers(model_or_widths)
        ]
    else:
        layers = [LayerCapacity(str(width), width) for width in _check(model_or_widths)]
    return Capacity(tolerance, tuple(layers))


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
    widths = [check_num_tasks(width, "width") for width in widths]
    if not widths:
        raise ValueError("`model_or_widths` must hold at least one width. Received: []")
    return widths
