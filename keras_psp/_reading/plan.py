"""Decides which layers of a model take a task, and how."""

import warnings
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_psp._reading.calls import Calls
from keras_psp._reading.calls import record_calls
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.heads import Heads
from keras_psp._reading.same_architecture import all_equal
from keras_psp._reading.within import can_copy
from keras_psp._reading.within import holders
from keras_psp._reading.within import is_block
from keras_psp.layers._original import layers_within


class Plan(NamedTuple):
    """What becomes of the layers of a model.

    Attributes:
        chosen: Layers to superpose.
        copied: More layers, of which each task gets a copy of its own.
        apart: Those of them whose inputs have no entry for each example. The blocks
            that they stand in are computed once for each task.
        heads: The `Heads` of the models that are to be kept in one.
    """

    chosen: Sequence[Any]
    copied: Sequence[Any] = ()
    apart: Sequence[Any] = ()
    heads: Heads | None = None

    @classmethod
    def of(
        cls,
        chosen: Sequence[Any],
        copied: Sequence[Any],
        calls: Calls | None,
        heads: Heads | None = None,
    ) -> "Plan":
        """Returns the plan for layers of which it is known how they are called."""
        apart = [
            layer
            for layer in (*chosen, *copied)
            if calls is not None and id(layer) not in calls.batched
        ]
        return cls(chosen, copied, apart, heads)


def calls_inside(
    read: Graph | OwnCode, layers: Iterable[keras.layers.Layer]
) -> Calls | None:
    """Returns how layers are called; or `None` if they are as in a graph, or unknown.

    In a graph, layers are called on batches, and nothing else uses their weights.
    """
    layers = list(layers)
    in_graph = {id(layer) for layer in read.layers if not is_block(layer)}
    if all(id(layer) in in_graph or can_convert(layer) for layer in read.layers):
        return None
    calls = record_calls(read, layers)
    if calls is None:
        warnings.warn(
            f"How {read.name!r} calls the layers inside it cannot be seen. If it uses "
            "their weights without calling them, or calls them on what has no entry "
            "for each example, one task may answer for another.",
            stacklevel=4,
        )
    return calls


def is_safe(layer: keras.layers.Layer, calls: Calls | None) -> bool:
    """Whether nobody uses a layer's weights but by calling it, as far as is known."""
    return calls is None or id(layer) in calls.safe


def plan_models(
    graphs: Sequence[Graph | OwnCode],
    whole: Sequence[Any] = (),
    heads: Heads | None = None,
    in_parts: bool = False,
) -> tuple[Plan, list[tuple]]:
    """Returns what becomes of the layers of models that are to be kept in one.

    Args:
        graphs: List of what `read_model()` returns, of models of one architecture.
        whole: Blocks of the first model that stand for all inside them.
        heads: The models' `Heads`, if these may be of other widths.
        in_parts: See `can_convert()`.

    Returns:
        `(plan, alike)`: for the first model; and a tuple of the layers of all models
        that stand for one another, for each of those that hold weights.

    Raises:
        ValueError: A layer in which they differ cannot have a copy for each task, or is
            a head of other widths that cannot be cut.
    """
    whole = list(whole)
    alike = alike_layers(graphs, whole)
    # What a block holds itself is used by its code: then all inside is copied with it.
    whole += [
        layers[0]
        for layers in alike
        if is_block(layers[0]) and not all_equal(layers) and can_copy(layers[0])
    ]
    while True:
        alike = alike_layers(graphs, whole)
        calls = calls_inside(graphs[0], [layers[0] for layers in alike])
        chosen: list[Any] = []
        copied: list[Any] = []
        stuck: list[Any] = []
        for layers in alike:
            first = layers[0]
            if can_convert(first, in_parts) and is_safe(first, calls):
                chosen.append(first)
            elif heads is not None and id(first) in heads.units:
                raise ValueError(
                    "Models may differ in the width of a head that is used by calling "
                    f"it alone. Received: {first.name!r}, whose weights are used "
                    "otherwise"
                )
            elif not all_equal(layers, whole=first in whole):
                if not can_copy(first):
                    raise ValueError(
                        f"A {type(first).__name__} has no counterpart that keeps "
                        "weights for each task. Received: models whose "
                        f"{first.name!r} differ"
                    )
                (copied if is_safe(first, calls) else stuck).append(first)
        if not stuck:
            return Plan.of(chosen, copied, calls, heads), alike
        # Its weights are used in the block around it: then this is copied as a whole.
        whole = [each for each in whole if each not in stuck]
        whole += [_block_around(graphs[0], layer) for layer in stuck]


def _block_around(read, layer):
    """Returns the smallest block around a layer that each task can have a copy of.

    Raises:
        ValueError: There is none.
    """
    blocks = [
        block
        for each in read.layers
        for block in (each, *layers_within(each))
        if can_copy(block) and any(layer is held for held in layers_within(block))
    ]
    if not blocks:
        raise ValueError(
            f"Tasks cannot have a copy each of a {type(layer).__name__} whose weights, "
            "or those of a layer inside it, are used elsewhere too, or without calling "
            "it. Give it weights of its own, train the models with it frozen, or "
            "superpose what stands before it alone, such as their `backbone`. "
            f"Received: models whose {layer.name!r} differ"
        )
    return min(blocks, key=lambda block: len(layers_within(block)))


def same_leaves(alike: Iterable[tuple]) -> dict[int, tuple]:
    """Returns the layers of all models, leaf layers too, by the `id` of the first's.

    Args:
        alike: What `plan_models()` returns.
    """
    alike = list(alike)
    leaves = (leaf_layers(layers) for layers in zip(*alike, strict=True))
    return {id(same[0]): same for same in (*alike, *zip(*leaves, strict=True))}


def alike_layers(
    graphs: Sequence[Graph | OwnCode], whole: Sequence[Any] = ()
) -> list[tuple]:
    """Returns the layers of models that stand for one another, and hold weights.

    Args:
        graphs: List of what `read_model()` returns, of models of one architecture.
        whole: Blocks of the first model that stand for all inside them.

    Returns:
        List of a tuple of a layer of each model.
    """
    every = [
        [each for layer in read.layers for each in (layer, *layers_within(layer))]
        for read in graphs
    ]
    wanted = {id(block) for block in whole}
    places = [i for i, layer in enumerate(every[0]) if id(layer) in wanted]
    blocks = {id(layers[i]) for layers in every for i in places}
    found = (holders(read.layers, lambda block: id(block) in blocks) for read in graphs)
    return list(zip(*found, strict=True))
