"""Any layer of another's code, with a copy of its weights for each task.

The layer stays what it is: its class, attributes and code. Where it reads a weight, it
is given the row of the task. A batch of several tasks is computed once for each.
"""

import functools
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.private import adding_weights
from keras_psp._core.private import extended_scope
from keras_psp._core.private import seed_generators
from keras_psp._core.private import untrack_weights
from keras_psp._core.task import Task
from keras_psp._core.task_layer import TaskLayer
from keras_psp.layers._block import as_it_is
from keras_psp.layers._block import read_original
from keras_psp.layers._task_rows import TaskRows


def make_copies(layer: keras.layers.Layer, num_tasks: int) -> None:
    """Gives a layer, where it stands, a copy of its weights for each task.

    Args:
        layer: Built layer. The tasks begin with its weights.
        num_tasks: Positive integer.
    """
    kind: Any = type(layer)
    as_it_was = as_it_is(layer, is_block=False)
    weights = list(layer.weights)
    values = layer.get_weights()
    untrack_weights(layer, weights)
    object.__setattr__(layer, "__class__", _class_of(kind))
    copies: Any = layer
    copies.set_num_tasks(num_tasks)
    # No attributes that Keras looks into.
    vars(layer)["_as_it_was"] = as_it_was
    vars(layer)["_copied"] = _Hidden(weights)
    with adding_weights(layer):
        for i, (weight, value) in enumerate(zip(weights, values, strict=True)):
            copies.add_rows(
                f"copies_{i}",
                tuple(weight.shape),
                # What a task that is added later begins with, too.
                functools.partial(_constant, value),
                name=weight.name,
                regularizer=weight.regularizer,
                constraint=weight.constraint,
                dtype=weight.dtype,
                trainable=weight.trainable,
            )
            copies.set_new_row(getattr(layer, f"copies_{i}"), value)


def _constant(value, shape, dtype=None):
    return ops.convert_to_tensor(value, dtype)


class _Hidden:
    """The weights that the layer's code knows, hidden from Keras' search for them."""

    def __init__(self, weights):
        self.weights = weights


class _SavedByOrder:
    """Saves weights as Keras' `Layer` does: some layers look for theirs by name."""

    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables


class TaskCopies(TaskRows, _SavedByOrder):
    """Mixin of the classes that layers take which keep copies of their weights."""

    _as_it_was: dict
    _copied: _Hidden
    in_block = True

    def original(self) -> Any:
        """Returns a new layer as it was."""
        return read_original(self._as_it_was)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As the layer was called before: its task comes from the scope.
        return super(TaskLayer, self).__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        given = keras.tree.flatten((args, kwargs))
        inputs = next((x for x in given if len(getattr(x, "shape", ())) > 0), None)
        task = self.parse_task(None, inputs)
        drawn: dict[int, Any] = {}

        def compute(index: Any) -> Any:
            return self._compute(index, drawn, args, kwargs)

        def one(task: Task) -> Any:
            return keras.tree.map_structure(task.mask, compute(task.index))

        def mixed() -> Any:
            def choose(k: Any, outputs: Any, before: Any) -> Any:
                def where(new: Any, old: Any) -> Any:
                    own = ops.reshape(
                        ops.equal(task.index, k), (-1,) + (1,) * (len(new.shape) - 1)
                    )
                    return ops.where(own, new, old)

                return keras.tree.map_structure(where, outputs, before)

            first = compute(0)
            start = choose(0, first, first)  # Which has a row for each example.
            outputs = ops.fori_loop(
                1, self.num_tasks, lambda k, each: choose(k, compute(k), each), start
            )
            return keras.tree.map_structure(task.mask, outputs)

        if task.is_one:
            outputs = one(task)
        elif keras.tree.is_nested(self._outputs_of(args, kwargs)):
            outputs = mixed()  # Of a branch, there is one tensor.
        else:
            outputs = task.branch(one, mixed)
        for generator in drawn.values():  # As often as a plain layer would.
            generator.next()
        return outputs

    def _compute(self, index, drawn, args, kwargs):
        """Calls the layer with a task's weights, and notes what draws numbers."""
        rows = [take_rows(bank.value, index) for bank in self.task_weights]
        weights = self._copied.weights
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
        with keras.StatelessScope():
            return self.compute_output_spec(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {"original": self._as_it_was, "num_tasks": self.num_tasks}

    def get_build_config(self) -> None:
        """Returns nothing: the layer as it was tells its shapes."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        layer = read_original(config["original"], custom_objects)
        make_copies(layer, config["num_tasks"])
        return layer


@functools.cache
def _class_of(kind: Any) -> type:
    made = type(f"Task{kind.__name__}", (TaskCopies, kind), {"__module__": __name__})
    # A file names the mixin. That reads the layer's own class from the config.
    return keras.saving.register_keras_serializable("keras_psp", "TaskCopies")(made)


keras.saving.register_keras_serializable("keras_psp")(TaskCopies)
