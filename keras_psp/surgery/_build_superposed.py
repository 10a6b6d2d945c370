"""A copy of a model in which some layers are superposed."""

from collections.abc import Callable
from typing import Any

import keras

from keras_psp._core.task_layer import TaskLayer
from keras_psp._reading.counterparts import has_own_counterpart
from keras_psp._reading.counterparts import make_own
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import copy_layer
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.graph import is_graph
from keras_psp._reading.graph import pair_leaf_layers
from keras_psp._reading.plan import Plan
from keras_psp._reading.within import copy_built
from keras_psp.layers._block import Block
from keras_psp.layers._block import build_like
from keras_psp.layers._block import put_into
from keras_psp.layers._original import as_it_is
from keras_psp.layers._original import layers_within
from keras_psp.layers._original import pairs_within
from keras_psp.layers._task_copies import make_copies
from keras_psp.models._own_model import OwnModel
from keras_psp.models.task_model import TaskModel

Pairs = list[tuple[keras.layers.Layer, keras.layers.Layer]]


def build_superposed(
    read: Graph | OwnCode,
    plan: Plan,
    new_layer: Callable[[keras.layers.Layer], keras.layers.Layer],
    num_tasks: int,
    kind: type[TaskModel] = TaskModel,
) -> tuple[Any, Pairs]:
    """Builds a model once more, with a task and superposed layers.

    Args:
        read: What `read_model()` returns of the model.
        plan: What becomes of its layers, those inside its models and blocks too.
        new_layer: Function of a chosen layer that returns its counterpart, not built.
        num_tasks: Positive integer.
        kind: Class of the model, where it has a graph.

    Returns:
        `(superposed, pairs)`: a `TaskModel`, or a model of the same class, without the
        weights of layers that take a task; and every leaf layer of the model with the
        one that stands for it. Blocks have the weights of their other layers.
    """
    builder = _Builder(plan, new_layer, num_tasks, kind)
    if isinstance(read, Graph):
        return builder.build_graph(read)
    copy = copy_built(read.model)
    return copy, builder.superpose_within(read.model, copy, OwnModel)


class _Builder:
    def __init__(self, plan, new_layer, num_tasks, kind):
        self._chosen, self._copied, self._apart = (
            {id(layer) for layer in layers}
            for layers in (plan.chosen, plan.copied, plan.apart)
        )
        own = {id(layer) for layer in plan.copied if has_own_counterpart(layer)}
        self._replaced = self._chosen | own
        self._make, self._num_tasks, self._kind = new_layer, num_tasks, kind
        self._units = {} if plan.heads is None else plan.heads.units
        self._arguments = {} if plan.heads is None else plan.heads.arguments

    def _new_layer(self, layer):
        if id(layer) not in self._chosen:
            return make_own(layer, self._num_tasks)
        new = self._make(layer)
        if id(layer) in self._units:
            new.set_units_per_task(self._units[id(layer)])
        return new

    def build_graph(self, whole):
        made = {}  # Models may share a layer, or a model.

        def superposed_of(layer):
            if id(layer) not in made:
                made[id(layer)] = layer, make(layer)
                new = made[id(layer)][1]
                if new is not layer and new.name == "task":
                    new.name = "task_layer"  # The input has that name.
            return made[id(layer)][1]

        def make(layer):
            if is_graph(layer):
                inner = Graph(layer, takes_task=True)
                if any(id(each) in self._replaced for each in inner.layers):
                    return build(inner)
                return keras.models.clone_model(layer, clone_function=superposed_of)
            if id(layer) in self._replaced:
                return self._new_layer(layer)
            return copy_layer(layer)

        def build(graph):
            task = keras.Input((), dtype="int32", name="task")
            inputs = graph.new_inputs()

            def call(layer, *args, **kwargs):
                if isinstance(layer, TaskLayer):
                    return layer(*args, task=task, **kwargs)
                if isinstance(layer, TaskModel):
                    given, *args = args
                    given = Graph(layer, takes_task=True).name_inputs(given)
                    return layer({**given, "task": task}, *args, **kwargs)
                return layer(*args, **kwargs)

            outputs = graph.rebuild(inputs, superposed_of, call, also=[task])
            # Models inside it are parts of what is trained.
            kind = self._kind if graph is whole else TaskModel
            return kind({**inputs, "task": task}, outputs, name=graph.name)

        superposed = build(whole)
        pairs = []
        for layer, copy in made.values():
            if is_graph(layer):
                continue
            if isinstance(copy, TaskLayer) or not self._takes_task(layer):
                pairs += pair_leaf_layers([(layer, copy)])
                continue
            copy_weights(layer, copy)
            if id(layer) in self._copied:
                make_copies(copy, self._num_tasks, is_alone=True)
                pairs.append((layer, copy))
            else:
                pairs += self.superpose_within(layer, copy, Block)
        return superposed, pairs

    def superpose_within(self, block, copy, mixin):
        """Superposes the chosen layers of a block's copy, where they stand."""
        as_it_was = as_it_is(copy)
        put_in, pairs, options = [], [], {}
        for place, (layer, old) in enumerate(pairs_within(block, copy)):
            if id(layer) in self._replaced:
                new = self._new_layer(layer)
                build_like(new, layer, old)
            elif id(layer) in self._copied:
                make_copies(old, self._num_tasks)
                new = old
            else:
                continue
            put_in.append((place, old, new))
            pairs.append((layer, old))
            if id(layer) in self._apart:
                options["each_task"] = True
            for name, head in self._arguments.items():
                if head == id(layer):
                    options.setdefault("widths", {})[name] = place
        put_into(copy, put_in, as_it_was, mixin, options)
        return pairs

    def _takes_task(self, layer):
        """Whether a layer, or one inside it, is to take a task."""
        every = {id(each) for each in (layer, *layers_within(layer))}
        return bool(every & (self._chosen | self._copied))
