"""Any layer of another's code, with a copy of its weights for each task.

The layer stays what it is: its class, attributes and code. Where it reads a weight, it
is given the row of the task. A batch of several tasks is computed once for each.
"""

import functools
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp._core.backend import branches_return_any
from keras_psp._core.backend import take_rows
from keras_psp._core.private import adding_weights
from keras_psp._core.private import extended_scope
from keras_psp._core.private import learned_weights
from keras_psp._core.private import own_weights
from keras_psp._core.private import pickled
from keras_psp._core.private import seed_generators
from keras_psp._core.private import take_class
from keras_psp._core.private import trusted
from keras_psp._core.private import untrack_weights
from keras_psp._core.task import Task
from keras_psp._core.task_layer import TaskLayer
from keras_psp._core.task_layer import is_for_all
from keras_psp.layers._original import Hidden
from keras_psp.layers._original import as_it_is
from keras_psp.layers._original import layers_within
from keras_psp.layers._original import own_objects
from keras_psp.layers._original import read_original
from keras_psp.layers._task_rows import TaskRows


def make_copies(
    layer: keras.layers.Layer, num_tasks: int, is_alone: bool = False
) -> None:
    """Gives a layer, where it stands, a copy of its weights for each task.

    Args:
        layer: Built layer. The tasks begin with its weights, and with those of the
            layers inside it.
        num_tasks: Positive integer.
        is_alone: Whether it stands in a graph. It then needs a config of its own; what
            stands in a block is made again by that.
    """
    kind: Any = type(layer)
    as_it_was = as_it_is(layer, is_block=False) if is_alone else {}
    weights = list(layer.weights)
    values = layer.get_weights()
    order = _order_in_files(layer)
    untrack_weights(layer, weights)
    for each in layers_within(layer):
        # Some save and load what they know by name.
        vars(each).update(
            save_own_variables=_nothing,
            load_own_variables=_nothing,
            quantize=functools.partial(_refuse, each),
        )
    take_class(layer, _class_of(kind))
    copies: Any = layer
    copies.set_num_tasks(num_tasks)
    # No attributes that Keras looks into.
    vars(layer)["_as_it_was"] = as_it_was
    vars(layer)["_copied"] = Hidden(weights)
    with adding_weights(layer):
        for weight, value in zip(weights, values, strict=True):
            attribute = f"copies_{order[id(weight)]}"
            copies.add_rows(
                attribute,
                tuple(weight.shape),
                # What a task that is added later begins with, too.
                functools.partial(_constant, value),
                name=weight.name,
                regularizer=weight.regularizer,
                constraint=weight.constraint,
                dtype=weight.dtype,
                trainable=weight.trainable,
            )
            copies.set_new_row(getattr(layer, attribute), value)


def _order_in_files(layer):
    """Returns a number for each of a layer's weights, by its `id()`.

    Keras' own order of what stands in attributes of a functional model differs between
    backends.
    """
    own = [w for each in (layer, *layers_within(layer)) for w in own_weights(each)]
    known = {id(weight) for weight in layer.weights}
    ordered = [id(weight) for weight in own if id(weight) in known]
    every = dict.fromkeys([*ordered, *map(id, layer.weights)])
    return {name: i for i, name in enumerate(every)}


def _nothing(store):
    """Saves or loads nothing: the copies hold all."""


def _refuse(layer, *args, **kwargs):
    """Stands for `quantize()`, which would put other weights before the copies."""
    raise NotImplementedError(
        "A layer of whose weights each task has a copy cannot be quantized. Received: "
        f"{layer.name!r}"
    )


def _constant(value, shape, dtype=None):
    return ops.convert_to_tensor(value, dtype)


class _SavedByOrder:
    """Saves weights as Keras' `Layer` does: some layers look for theirs by name."""

    def save_own_variables(self, store: Any) -> None:
        found: dict[str, Any] = {}
        keras.layers.Layer.save_own_variables(self, found)
        for i, name in enumerate(self._names()):
            store[str(i)] = found[name]

    def load_own_variables(self, store: Any) -> None:
        names = self._names()
        if len(store.keys()) == len(names):  # Or Keras says what is wrong.
            store = {name: store[str(i)] for i, name in enumerate(names)}
        keras.layers.Layer.load_own_variables(self, store)

    def _names(self) -> list[str]:
        """Keras' names for the copies, in the order of a file: the trained ones first.

        Keras knows those in the order of this backend.
        """
        own, learned = own_weights(self), set(map(id, learned_weights(self)))
        names = {id(weight): str(i) for i, weight in enumerate(own)}
        copies = [getattr(self, f"copies_{i}") for i in range(len(own))]
        copies.sort(key=lambda weight: id(weight) not in learned)
        return [names[id(weight)] for weight in copies]


class TaskCopies(TaskRows, _SavedByOrder):
    """Mixin of the classes that layers take which keep copies of their weights."""

    _as_it_was: dict
    _copied: Hidden
    in_block = True

    def original(self) -> Any:
        """Returns a new layer as it was."""
        with trusted():
            return read_original(self._as_it_was, own_objects(self))

    def can_quantize(self, mode: Any) -> bool:
        """Whether Keras has nothing to quantize in the layer, nor inside it."""
        kinds: list[Any] = [type(self).__bases__[1]]
        kinds += map(type, layers_within(self))
        return all(
            issubclass(kind, keras.Model)
            or kind.quantize is keras.layers.Layer.quantize
            for kind in kinds
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As the layer was called before: its task comes from the scope.
        return super(TaskLayer, self).__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        shapes_alone = vars(self).get("_shapes_alone")
        if shapes_alone is not None:
            with shapes_alone:
                return super().call(*args, **kwargs)
        given = keras.tree.flatten((args, kwargs))
        inputs = next((x for x in given if len(getattr(x, "shape", ())) > 0), None)
        if is_for_all(inputs):
            inputs = None  # The outputs are for each example, if the tasks are.
        task = self.parse_task(None, inputs)
        drawn: dict[int, Any] = {}

        def compute(index: Any) -> Any:
            return self._compute(index, drawn, args, kwargs)

        def one(task: Task) -> Any:
            return keras.tree.map_structure(task.mask, compute(task.index))

        def mixed() -> Any:
            outputs = task.in_turn(compute)
            return keras.tree.map_structure(task.mask, outputs)

        def blocks() -> Any:
            # Each task's own share of the batch alone.
            given, shares = keras.tree.flatten((args, kwargs)), []
            for each in given:
                if len(getattr(each, "shape", ())) > 0:
                    shares.append(task.as_blocks(each))

            def of_task(own: Any) -> Any:
                index, rest = own[0], iter(own[1:])
                filled = [
                    next(rest) if len(getattr(each, "shape", ())) > 0 else each
                    for each in given
                ]
                return self._compute(
                    index, drawn, *keras.tree.pack_sequence_as((args, kwargs), filled)
                )

            index = ops.arange(self.num_tasks, dtype="int32")
            return keras.tree.map_structure(
                lambda y: task.mask(ops.reshape(y, (-1, *y.shape[2:]))),
                ops.map(of_task, (index, *shares)),
            )

        if task.is_one:
            outputs = one(task)
        elif task.in_blocks and inputs is not None:
            outputs = blocks()
        elif inputs is None or not (
            # Of a branch in a graph, there is one tensor, of one shape.
            branches_return_any()
            or not keras.tree.is_nested(self._outputs_of(args, kwargs))
        ):
            outputs = mixed()
        else:
            outputs = task.branch(one, mixed)
        for generator in drawn.values():  # As often as a plain layer would.
            generator.next()
        return outputs

    def _compute(self, index, drawn, args, kwargs):
        """Calls the layer with a task's weights, and notes what draws numbers."""
        rows = [take_rows(bank.value, index) for bank in self.task_weights]
        weights = self._copied.values
        with extended_scope(zip(weights, rows, strict=True)) as scope:
            before = dict(scope.state_mapping)
            outputs = super().call(*args, **kwargs)
        if scope.losses or any(
            scope.get_current_value(each) is not before[id(each)] for each in weights
        ):
            raise ValueError(
                "A layer that changes its weights or adds a loss when it is called "
                "cannot keep a copy for each task. "
                f"Received: {self.name!r}, a {type(self).__name__}"
            )
        for generator in seed_generators(self):
            state = scope.get_current_value(generator.state)
            if state is not before.get(id(generator.state)):
                drawn[id(generator)] = generator
        return outputs

    def _outputs_of(self, args, kwargs):
        """The symbolic outputs, which are alike for all tasks."""
        # JAX computes shapes in a scope of its own. While a model is trained there, the
        # scope outside alone has the values: of what draws numbers too.
        vars(self)["_shapes_alone"] = extended_scope(())
        try:
            # By the call itself: a layer's own way may know fewer arguments.
            return keras.Operation.compute_output_spec(self, *args, **kwargs)
        finally:
            vars(self)["_shapes_alone"] = None

    def get_config(self) -> dict[str, Any]:
        config = {"original": self._as_it_was, "num_tasks": self.num_tasks}
        removed = list(self.removed_tasks)
        return config | ({"removed_tasks": removed} if removed else {})

    def __reduce__(self) -> tuple:
        return pickled(self)

    def get_build_config(self) -> None:
        """Returns nothing: the layer as it was tells its shapes."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        layer = read_original(config["original"], custom_objects)
        make_copies(layer, config["num_tasks"], is_alone=True)
        layer.removed_tasks = config.get("removed_tasks", ())
        return layer


@functools.cache
def _class_of(kind: Any) -> type:
    made = type(f"Task{kind.__name__}", (TaskCopies, kind), {"__module__": __name__})
    # A file names the mixin. That reads the layer's own class from the config.
    return keras.saving.register_keras_serializable("keras_psp", "TaskCopies")(made)


keras.saving.register_keras_serializable("keras_psp")(TaskCopies)
