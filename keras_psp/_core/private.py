"""Every private name of Keras, TensorFlow, JAX and torch that this package uses.

Each function says what it needs the name for. All of them were tried on Keras 3.15.1,
TensorFlow 2.21.0, JAX 0.10.2 and torch 2.13.0. tests/test_private.py fails with the
name when one vanishes.
"""

import contextlib
import sys
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras


def replace_weight(layer: keras.layers.Layer, old: Any, add: Callable) -> None:
    """Puts the weight that `add()` makes in the place of the `old` one.

    Keras locks the variables of a built layer. Its own layers unlock them in this way
    when `quantize()` gives a weight another shape.
    """
    layer._untrack_variable(old)
    layer._tracker.unlock()
    with layer._open_name_scope():
        add()
    layer._tracker.lock()


def children(layer: keras.layers.Layer) -> list:
    """Returns the layers directly inside a layer or a model, without inputs.

    Keras offers `layers` for models alone.
    """
    found = layer._flatten_layers(include_self=False, recursive=False)
    return [each for each in found if not isinstance(each, keras.layers.InputLayer)]


class LeafLayer:
    """Mixin of the layers that Keras is to take for one, though they hold others.

    Before Keras 3.16 `Model.quantize()` passes over layers that hold others, without a
    word. It asks by calling `_flatten_layers()` without arguments; nothing else asks a
    layer in that way.
    """

    def _flatten_layers(self, include_self=True, recursive=True):
        if include_self and recursive:
            return [self]
        return super()._flatten_layers(include_self, recursive)


def is_symbolic() -> bool:
    """Whether Keras computes shapes alone, and nothing is to be trained or answered.

    A subclassed model is built in this way when its file is loaded: Keras calls it on
    floats of the saved shapes, for it does not save dtypes.
    """
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope

    return in_symbolic_scope()


@contextlib.contextmanager
def kept_weights(model: keras.Model) -> Iterator[None]:
    """Gives a model its weights back if what is done with it fails on JAX.

    Keras takes the weights out of a model for as long as its compiled steps run, and
    puts them back at the end. It does not if the first step cannot be traced.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    variables = [*model.variables, *model.metrics_variables]
    if getattr(model, "optimizer", None) is not None:
        variables += model.optimizer.variables
    values = [(variable, variable._value) for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in values:
            # A step that has run has taken the old value, and left a new one.
            if variable._value is None and value is not None:
                variable._value = value
        raise


def entry_layer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
    """Returns the outermost layer whose call is under way, in a call of `layer`."""
    return getattr(layer._get_call_context(), "entry_layer", None)


def count_writes(tensor: Any) -> int:
    """Returns how often a torch tensor has been written to."""
    return tensor._version


def function_graph(graph: Any) -> Any:
    """Returns the graph of the `tf.function` that a graph of TensorFlow's is part of.

    Branches and loops have graphs of their own, of subclasses.
    """
    while type(graph).__name__ != "FuncGraph" and hasattr(graph, "outer_graph"):
        graph = graph.outer_graph
    return graph


def value_at_call(graph: Any, closure: Callable, spec: Any, key: Any) -> Any:
    """Returns a tensor of `graph` that has the value of `closure()` at each call.

    TensorFlow documents `capture_call_time_value()`, but exports it nowhere.
    """
    with graph.as_default():
        return graph.capture_call_time_value(closure, spec, key=key)


def trace_context() -> Any:
    """Returns JAX' context manager that a compiled function is traced anew for.

    `jax.make_user_context` came with JAX 0.8.
    """
    return sys.modules["jax"].make_user_context(None)
