"""One thread at a time where Keras' compiled steps run on JAX.

There Keras takes the weights out of a model while its steps run. A second thread would
find none, in this model or in another that shares some of its layers.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_psp._core.private import flatten_layers

# Not in the layers: a lock would keep them from being pickled.
_locks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def one_thread(model: keras.Model) -> Iterator[None]:
    """Waits, on JAX, until no other thread uses a layer of the model in this scope."""
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            for lock in _locks_of(model):
                stack.enter_context(lock)
        yield


def _locks_of(model: keras.Model) -> list[Any]:
    """One lock, but where models share some of their layers; always in one order."""
    new = threading.RLock()
    every = {_locks.setdefault(layer, new) for layer in flatten_layers(model)}
    return sorted(every, key=id)
