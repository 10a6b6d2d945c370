"""What a model of many tasks takes, against a model for each."""

from dataclasses import dataclass
from typing import Any

import keras

from keras_psp._core.memory import count_bytes
from keras_psp._core.table import Shown
from keras_psp._reading.task_layers import find_holders
from keras_psp._reading.within import weights_of
from keras_psp.diagnostics import _plots as plots
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_rows import TaskRows

PARTS = (
    "kernels",
    "base_kernels",
    "core",
    "low_rank",
    "contexts",
    "task_state",
    "shared",
)


@dataclass(frozen=True)
class LayerMemory:
    """The bytes of one layer's weights.

    Attributes:
        name: The layer's.
        parts: Dictionary of bytes; see `memory()`.
        separate: The bytes of such a layer in K models of one task each.
    """

    name: str
    parts: dict
    separate: int

    @property
    def total(self):
        """The bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory(Shown):
    """The bytes of a model's weights; as text, a table.

    Attributes:
        num_tasks: Integer K.
        layers: Tuple of a `LayerMemory` for each layer with weights.
    """

    num_tasks: int
    layers: tuple

    @property
    def parts(self):
        """Dictionary of the bytes of each part, in all layers."""
        return {part: sum(layer.parts[part] for layer in self.layers) for part in PARTS}

    @property
    def total(self):
        """The bytes of the model."""
        return sum(layer.total for layer in self.layers)

    @property
    def separate(self):
        """The bytes of K models of one task each."""
        return sum(layer.separate for layer in self.layers)

    @property
    def ratio(self):
        """How many times as much the K models take."""
        return self.separate / self.total

    @property
    def rows(self):
        """A dictionary of bytes for each layer, and one for the model."""
        rows = [(layer.name, layer) for layer in self.layers] + [("all", self)]
        return [
            {
                "layer": name,
                **row.parts,
                "total": row.total,
                f"{self.num_tasks} models": row.separate,
            }
            for name, row in rows
        ]

    def plot(self, path=None):
        """Draws the parts of the model beside the K models, and layer by layer.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        return plots.save(plots.draw_memory(self), path)

    def __str__(self):
        width = max(len(row["layer"]) for row in self.rows)
        titles = list(self.rows[0])[1:]
        lines = [" " * width + "".join(f"  {title:>12}" for title in titles)]
        for row in self.rows:
            counts = "".join(f"  {row[title]:12,}" for title in titles)
            lines.append(f"{row['layer']:{width}}{counts}")
        return "\n".join(lines)


def memory(model: Any) -> Memory:
    """Counts the bytes of a model's weights, against a model for each of its tasks.

    ```
    kernels         of superposed layers, with what a LoRA or quantization adds
    base_kernels    that superposed kernels are added to
    core            kernels with a small core for each task, by `core=`
    low_rank        kernels of a low rank that each task has of its own, by `rank=`
    contexts        that are stored: those made of a seed take nothing
    task_state      what has a row for each task: biases, scales, statistics, and
                    kernels that are not superposed
    shared          all else, of which there is one for all tasks
    ```

    Weights count in the dtypes that they are stored in, parts in few bits with their
    scales. The comparison is with K models of one task each, as `extract()` makes them.
    They have the kernels and what is shared K times, the state of the tasks once, and
    no base kernels, cores, low rank and contexts. A layer with `context=None` has a
    float kernel in each of them. (`extract()` turns a complex layer into a real one
    with a kernel of twice the size; K complex layers are counted here as they are.) A
    context or layer that is used several times is counted where it is first.

    Args:
        model: `keras_psp.models.TaskModel` of K tasks, or a converted model of a class
            of its own.

    Returns:
        A `Memory`: `parts`, a dictionary of the above in bytes, `total`, `separate` of
        the K models, and their `ratio`; and its `layers`, which have a `name`, `parts`,
        `total` and `separate` of their own. `print()` shows a table, and
        `plot(path=None)` draws it.

    Raises:
        TypeError: `model` is not a `TaskModel`.

    Example:

    >>> import keras_psp
    >>> model = keras_psp.models.mlp((64,), 10, num_tasks=8, units=256, depth=1)
    >>> result = keras_psp.diagnostics.memory(model)
    >>> result.parts["kernels"] == 4 * (64 * 256 + 256 * 10)
    True
    >>> result.parts["contexts"] == 8 * (64 + 256)  # A sign takes a byte.
    True
    >>> result.separate == 8 * result.parts["kernels"], round(result.ratio, 1)
    (True, 7.7)
    """
    seen, layers = set(), []
    holders = find_holders(model)
    number = len(model.present_tasks)
    for layer in holders:
        sizes = dict.fromkeys(PARTS, 0)
        for part, weight in _parts_of(layer):
            if id(weight) not in seen:
                seen.add(id(weight))
                sizes[part] += count_bytes([weight])
        if any(sizes.values()):
            kernel = sizes["kernels"] or _extracted_kernel(layer)
            one = number * (kernel + sizes["shared"])
            own = sizes["task_state"] * number // model.num_tasks
            layers.append(LayerMemory(layer.name, sizes, one + own))
    return Memory(number, tuple(layers))


def _extracted_kernel(layer):
    """Returns the bytes of the kernel that a layer without a superposed one sees."""
    if not isinstance(layer, Superposed) or layer.context is not None:
        return 0
    return count_bytes([keras.KerasTensor(layer.kernel_shape, layer.variable_dtype)])


def _parts_of(layer):
    """Returns a list of each weight of a layer, with the part that it belongs to."""
    known = {}
    if isinstance(layer, Superposed):
        for child, part in (
            (layer.context, "contexts"),
            (layer.base, "base_kernels"),
            (layer.core, "core"),
            (layer.low_rank, "low_rank"),
            (layer.task_bias, "task_state"),
        ):
            if child is not None:
                known |= {id(weight): part for weight in child.weights}
        known[id(layer.bias)] = "shared"
        rest = "kernels"
    elif isinstance(layer, TaskRows):
        known = {id(weight): "task_state" for weight in layer.task_weights}
        rest = "shared"
    else:
        rest = "shared"
    return [(known.get(id(weight), rest), weight) for weight in weights_of(layer)]
