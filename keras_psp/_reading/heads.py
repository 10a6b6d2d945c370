"""Makes models alike whose last layers have different numbers of outputs."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.private import own_weights
from keras_psp._core.private import source_of
from keras_psp._reading.build_again import build_again
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import copy_flags
from keras_psp._reading.describe import get_config
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import is_graph
from keras_psp.layers._task_units import can_cut

# The bias of an output that a model does not have: its softmax is 0.
ABSENT = -1e4
# What may stand between a head and the model's outputs.
_BEHIND = (keras.layers.Activation, keras.layers.Softmax)

Read = Graph | OwnCode


class Heads:
    """Models with heads that are as wide as the widest one's.

    A head is a `keras.layers.Dense` whose outputs are the model's, perhaps behind a
    softmax. Outputs that a model does not have get kernels of zeros.

    Args:
        reads: List of what `read_model()` returns, of models that may have heads of
            other widths. Where they differ in more, they stay as they are.
        with_base: Whether the last one is the model that the others were trained from.
            A head of another width is of no use to theirs. It gets their mean.

    Attributes:
        reads: The list, with models that are wide enough in the place of others.
        units: Dictionary of the list of the models' widths by the `id` of a head of the
            first of these models, where they differ.
        arguments: Dictionary of the `id` of such a head by the argument of the models'
            own class that sets its width.
    """

    def __init__(self, reads: Sequence[Read], with_base: bool = False) -> None:
        self.reads = list(reads)
        self.units: dict[int, list[int]] = {}
        self.arguments: dict[str, int] = {}
        every = [_find_heads(read) for read in reads]
        if len({len(heads) for heads in every}) > 1:
            return
        widths = np.array([[head.units for head in heads] for heads in every])
        own = widths[: len(reads) - int(with_base)]
        widest = own.max(axis=0, initial=0)
        if (widths == widest).all() or not all(map(_can_widen, every[0])):
            return
        names = {}
        if isinstance(reads[0], OwnCode):
            configs = [read.model.get_config() for read in reads]
            names = _names_of(widths, configs)
        arguments = {name: int(widest[i]) for name, i in names.items()}
        for k, read in enumerate(reads):
            if (widths[k] != widest).any():
                wide = dict(zip(map(id, every[k]), widest.tolist(), strict=True))
                self.reads[k] = _widen(read, wide, arguments)
        wide_heads = [_find_heads(read) for read in self.reads]
        for i, heads in enumerate(zip(*wide_heads, strict=True)):
            if with_base and widths[-1, i] != widest[i]:
                _take_mean(heads[:-1], own[:, i].tolist(), heads[-1])
            if (own[:, i] != widest[i]).any():
                self.units[id(heads[0])] = own[:, i].tolist()
                here = [name for name, place in names.items() if place == i]
                self.arguments |= dict.fromkeys(here, id(heads[0]))


def _can_widen(head: Any) -> bool:
    return can_convert(head) and can_cut(head.activation)


def _find_heads(read: Read) -> list[Any]:
    """Returns the dense layers that make a model's outputs, each once."""
    found = {}
    for tensor in getattr(read.model, "outputs", None) or ():
        layer, given, place = source_of(tensor)
        while isinstance(layer, _BEHIND) or is_graph(layer):
            tensor = layer.outputs[place] if is_graph(layer) else given[0]
            layer, given, place = source_of(tensor)
        if type(layer) is keras.layers.Dense:
            found[id(layer)] = layer
    return list(found.values())


def _names_of(widths: np.ndarray, configs: Sequence[dict]) -> dict[str, int]:
    """Returns which arguments of a class of their own set the widths of which heads."""
    return {
        name: i
        for name in configs[0]
        for i in range(widths.shape[1])
        if len({*widths[:, i]}) > 1
        and [config.get(name) for config in configs] == widths[:, i].tolist()
    }


def _widen(read: Read, wide: dict[int, int], arguments: dict[str, int]) -> Read:
    """Returns what is read of a model with heads of other widths.

    Args:
        read: What `read_model()` returns of the model.
        wide: Dictionary of their widths by the `id` of its heads.
        arguments: Those of the model's class that set them.
    """

    def make(layer: Any) -> Any:
        if id(layer) not in wide:
            return None
        config = {**get_config(layer), "units": wide[id(layer)]}
        return keras.layers.Dense.from_config(config)

    wider, pairs = build_again(read, make, arguments)
    for layer, new in pairs:
        for old, weight in zip(own_weights(layer), own_weights(new), strict=True):
            weight.assign(_padded(old, weight.shape))
        copy_flags(own_weights(layer), own_weights(new))
    return wider


def _padded(weight: Any, shape: Any) -> np.ndarray:
    """Returns a weight with zeros behind, a bias with `ABSENT`; or cut."""
    value = ops.convert_to_numpy(weight)[tuple(map(slice, shape))]
    more = [(0, new - old) for old, new in zip(value.shape, shape, strict=True)]
    return np.pad(value, more, constant_values=ABSENT if value.ndim == 1 else 0)


def _take_mean(heads: Sequence[Any], widths: Sequence[int], mean: Any) -> None:
    """Gives a head the mean of those of the models that have an output."""
    for weights in zip(mean.weights, *(head.weights for head in heads), strict=True):
        values = np.stack([ops.convert_to_numpy(each) for each in weights[1:]])
        has = np.arange(values.shape[-1]) < np.array(widths)[:, None]
        has = has.reshape(len(has), *[1] * (values.ndim - 2), -1)
        weights[0].assign((values * has).sum(axis=0) / has.sum(axis=0))
