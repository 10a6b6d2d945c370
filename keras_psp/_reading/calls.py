"""How the layers inside a model are called: one pass that computes shapes alone.

A block's own code may read the weights of a layer inside it without calling it, or call
the layer on something that has no dimension for the batch, such as positions. Neither
can be seen from outside.
"""

from collections.abc import Iterable
from typing import NamedTuple

import keras

from keras_psp._core.private import recorded_reads

# Neither None nor what Keras puts in its place, so that it is the batch.
_BATCH = 97
# Of what may have any length: texts, images and sounds take different ones.
_LENGTHS = (4, 64, 1024)


class Calls(NamedTuple):
    """What is known of the calls of layers, by their `id`.

    Attributes:
        safe: The layers whose weights nobody uses but by calling them.
        batched: Those that are always called on tensors whose first dimension is that
            of the batch, or has one entry for all examples.
    """

    safe: frozenset[int]
    batched: frozenset[int]


def record_calls(
    model: keras.Model, layers: Iterable[keras.layers.Layer]
) -> Calls | None:
    """Returns how layers are called inside a model, or `None` if it cannot be known.

    That is so if no graph tells what its inputs are, or if it takes none of the lengths
    that are tried.

    Args:
        model: Built model.
        layers: Layers in it; those without weights are left out.
    """
    if getattr(model, "inputs", None) is None:
        return None
    layers = [layer for layer in layers if layer.weights]
    for length in _LENGTHS:
        listener = _Listener(model, layers)
        try:
            listener(_specs(model, length))
        except Exception:  # noqa: S112  Too short or too long, in any words.
            continue
        return Calls(
            frozenset(set(listener.called) - listener.read),
            frozenset(each for each, fits in listener.called.items() if fits),
        )
    return None


def _specs(model, length):
    def spec(tensor):
        sizes = (size or length for size in tensor.shape[1:])
        return keras.KerasTensor((tensor.shape[0] or _BATCH, *sizes), tensor.dtype)

    return keras.tree.map_structure(spec, model.input)


class _Listener(keras.layers.Layer):
    """Calls a model, and notes how layers inside it are called."""

    def __init__(self, model, layers):
        super().__init__()
        # No attributes that Keras looks into.
        vars(self).update(model=model, layers=layers, called={}, read=set())

    def call(self, inputs):
        batch = keras.tree.flatten(inputs)[0].shape[0]
        owners = {id(w): id(each) for each in self.layers for w in each.weights}
        active = []

        def note(variable):
            owner = owners.get(id(variable))
            if owner is not None and owner not in active:
                self.read.add(owner)

        def listen(layer):
            def call(*args, **kwargs):
                given = keras.tree.flatten((args, kwargs))
                shapes = (tuple(getattr(each, "shape", ())) for each in given)
                shape = next((each for each in shapes if each), ())
                one = len(shape) > 1 and shape[0] == 1
                # TensorFlow may not know the first dimension.
                fits = one or (len(shape) > 0 and shape[0] in (batch, None))
                self.called[id(layer)] = fits and self.called.get(id(layer), True)
                active.append(id(layer))
                try:
                    return type(layer).call(layer, *args, **kwargs)
                finally:
                    active.pop()

            layer.call = call

        try:
            for layer in self.layers:
                listen(layer)
            with recorded_reads(note):
                return self.model(inputs)
        finally:
            for layer in self.layers:
                del layer.call

    def compute_mask(self, inputs, mask):
        return None  # The layers inside use the masks of the inputs.
