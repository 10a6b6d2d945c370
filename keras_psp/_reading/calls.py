"""How the layers inside a model are called: one pass that computes shapes alone.

A block's own code may read the weights of a layer inside it without calling it, or call
the layer on something that has no dimension for the batch, such as positions, or on
one example after the other. None of these can be seen from outside.
"""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import keras

from keras_psp._core.backend import current_trace
from keras_psp._core.private import calls_replaced
from keras_psp._core.private import recorded_reads
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp.layers._original import layers_within

# Neither None nor what Keras puts in its place, so that it is the batch.
_BATCH = 97
# Of what may have any length: texts, images and sounds take different ones.
_LENGTHS = (4, 64, 1024)


class Calls(NamedTuple):
    """What is known of the calls of layers, by their `id`.

    Attributes:
        safe: The layers whose weights nobody uses but by calling them. Some are never
            called: a block may make more layers than it needs.
        batched: Those that are always called on tensors whose first dimension is that
            of the batch, or has one entry for all examples. In a loop, one entry may be
            that of one example.
    """

    safe: frozenset[int]
    batched: frozenset[int]


def record_calls(
    read: Graph | OwnCode, layers: Iterable[keras.layers.Layer]
) -> Calls | None:
    """Returns how layers are called inside a model, or `None` if it cannot be known.

    That is so if nothing tells what its inputs are, or if it takes none of the sizes
    that are tried.

    Args:
        read: What `read_model()` returns of a model.
        layers: Layers in it; those without weights are left out.
    """
    try:
        inputs = read.inputs
    except ValueError:
        return None
    layers = [layer for layer in layers if getattr(layer, "weights", None)]
    for sizes in _unknown_sizes(read):
        listener = _Listener(read.model, layers)
        if _runs(listener, read, inputs, *sizes):
            return Calls(
                frozenset(set(map(id, layers)) - listener.read),
                frozenset(each for each, fits in listener.called.items() if fits),
            )
    return None


def find_changing(
    read: Graph | OwnCode, layers: Iterable[keras.layers.Layer]
) -> list[keras.layers.Layer]:
    """Returns the layers whose floats a model's code changes in training.

    Moving averages are such. Those of layers inside a layer count as its own. None are
    returned of a model of which that cannot be known.

    Args:
        read: What `read_model()` returns of a model.
        layers: Layers in it.
    """
    held = {
        id(layer): [w for w in layer.non_trainable_weights if "float" in str(w.dtype)]
        for layer in layers
    }
    if not any(held.values()):
        return []
    try:
        inputs = read.inputs
    except ValueError:
        return []
    for sizes in _unknown_sizes(read):
        trainer = _Trainer(read.model, [w for each in held.values() for w in each])
        if _runs(trainer, read, inputs, *sizes):
            return [
                layer
                for layer in layers
                if any(id(w) in trainer.changed for w in held[id(layer)])
            ]
    return []


def _unknown_sizes(read):
    """Yields what dimensions that inputs leave open may be: a length, and a width.

    The width is that of floats' last dimension, such as the numbers of a patch of an
    image. One of the layers inside the model takes it.
    """
    for length in _LENGTHS:
        yield length, length
    inside = [each for layer in read.layers for each in (layer, *layers_within(layer))]
    specs = keras.tree.flatten([getattr(each, "input_spec", None) for each in inside])
    axes = [each.axes for each in specs if isinstance(each, keras.InputSpec)]
    widths = {each.get(-1) for each in axes} - {None, *_LENGTHS}
    for width in sorted(widths):
        for length in _LENGTHS:
            yield length, width


def _runs(layer, read, inputs, length, width):
    """Calls a layer on inputs of these sizes; returns whether it takes them."""
    specs = {name: _spec(tensor, length, width) for name, tensor in inputs.items()}
    try:
        layer(read.give(specs))
    except Exception:  # Too short or too long, in any words.
        return False
    return True


def _spec(tensor, length, width):
    is_float = keras.backend.is_float_dtype(tensor.dtype)
    batch, *sizes = tensor.shape
    if sizes and sizes[-1] is None and is_float:
        sizes[-1] = width
    sizes = (size or length for size in sizes)
    return keras.KerasTensor((batch or _BATCH, *sizes), tensor.dtype)


class _Caller(keras.layers.Layer):
    """Calls a model, and notes something."""

    def __init__(self, **held):
        super().__init__()
        vars(self).update(held)  # No attributes that Keras looks into.

    def compute_mask(self, inputs, mask):
        return None  # The layers inside use the masks of the inputs.


class _Listener(_Caller):
    """Notes how layers inside a model are called."""

    def __init__(self, model, layers):
        ones: dict = collections.Counter()
        super().__init__(model=model, layers=layers, called={}, read=set(), ones=ones)

    def call(self, inputs):
        batch, trace = keras.tree.flatten(inputs)[0].shape[0], current_trace()
        owners = {id(w): id(each) for each in self.layers for w in each.weights}
        active = []

        def note(variable):
            owner = owners.get(id(variable))
            if owner is not None and owner not in active:
                self.read.add(owner)

        def hear(layer, call, args, kwargs):
            given = keras.tree.flatten((args, kwargs))
            shapes = (tuple(getattr(each, "shape", ())) for each in given)
            shape = next((each for each in shapes if each), ())
            fits = len(shape) > 0 and shape[0] == batch
            if not fits and current_trace() == trace:
                one = len(shape) > 1 and shape[0] == 1
                self.ones[id(layer)] += one
                # TensorFlow may not know the first dimension. A loop of Python's calls
                # a layer once for each example.
                fits = one and self.ones[id(layer)] < batch or shape[:1] == (None,)
            self.called[id(layer)] = fits and self.called.get(id(layer), True)
            active.append(id(layer))
            try:
                return call(*args, **kwargs)
            finally:
                active.pop()

        with calls_replaced(self.layers, hear), recorded_reads(note):
            return self.model(inputs)


class _Trainer(_Caller):
    """Notes which weights a model's code changes in training."""

    def __init__(self, model, weights):
        super().__init__(model=model, watched=weights, changed=set())

    def call(self, inputs):
        with keras.StatelessScope() as scope:
            outputs = self.model(inputs, training=True)
            for weight in self.watched:
                if scope.get_current_value(weight) is not None:
                    self.changed.add(id(weight))
        return outputs
