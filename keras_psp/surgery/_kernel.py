"""One layer's kernels, of many models, in one."""

import keras
import numpy as np
from keras import ops

from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import inputs_of_layers
from keras_psp._reading.rows import input_rows
from keras_psp._reading.rows import kernel_rows
from keras_psp._reading.rows import unbind_rows
from keras_psp.surgery.extract import build_plain

BATCH_SIZE = 256


class Kernel:
    """The kernels of one layer in K models, and the superposed layer to hold them.

    Args:
        twin: The superposed layer; its base kernel, if it has one, is that of the model
            that the others were trained from.
        layers: List of the K Keras layers.
        first: Integer, the task of the first of them.
    """

    def __init__(self, twin, layers, first=0):
        self.twin = twin
        self.layers = layers
        self.first = first
        self.rows = [kernel_rows(twin, layer.kernel) for layer in layers]
        self.base = 0.0 * self.rows[0]
        if twin.base_kernel is not None:
            self.base = kernel_rows(twin, twin.base_kernel)

    def add_up(self, sign=1):
        """Adds `sum_k C_k^T D_k` to the kernel, `D_k` what is not the base's.

        Args:
            sign: 1, or -1 to subtract it.
        """
        total = sum(
            unbind_rows(self.twin, rows - self.base, k)
            for k, rows in enumerate(self.rows, self.first)
        )
        kernel = self.twin.kernel
        self._set(kernel, kernel_rows(self.twin, kernel) + sign * total)

    def fit(self, taps, inputs, ridge):
        """Sets the kernels that answer most as the tasks' own do; see `superpose()`.

        Args:
            taps: The `InputProbes` of the superposed model, of which the layers before
                this one are done.
            inputs: List of a dictionary of arrays for each.
            ridge: Non-negative float.
        """
        twin = self.twin
        here, there = taps.models(twin)
        left = right = 0.0
        for k, x in enumerate(inputs):
            taps.hold(k)
            gram, cross = self._products(here, there, x, k)
            # Groups of filters see groups of channels: all of it is done for each.
            groups, _, size = gram.shape
            # Inputs that are all zero show nothing: then what the kernels say counts.
            mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
            share = np.where(mean > 0, ridge * mean, 1.0) * np.eye(size)
            own, base = (
                np.moveaxis(np.reshape(rows, (size, groups, -1)), 1, 0)
                for rows in (self.rows[k], self.base)
            )
            wanted = cross @ own - gram @ base + share @ (own - base)
            gram = gram + share
            half = self._unbind(gram, k)  # C^T G, and its transpose is G C
            full = self._unbind(np.swapaxes(half, 1, 2), k)
            bound = self._unbind(wanted, k)
            if twin.base_kernel is not None:
                # The ridge holds the base as well: where contexts are alike, nothing
                # else tells what is the base's from what is the kernel's.
                rest = np.swapaxes(half, 1, 2)
                full = np.block([[full, half], [rest, gram + share]])
                bound = np.concatenate([bound, wanted], axis=1)
            left, right = left + full, right + bound
        try:
            solved = np.moveaxis(np.linalg.solve(left, right), 0, 1)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"The data do not show all inputs of {twin.name!r}: it needs a ridge "
                f"above 0. Received: ridge={ridge}"
            ) from None
        shape = self.rows[0].shape
        self._set(twin.kernel, np.reshape(solved[:size], shape))
        if twin.base_kernel is not None:
            change = np.reshape(solved[size:], shape)
            self._set(twin.base_kernel, self.base + change)

    def _unbind(self, rows, task):
        """Returns `C_k^T R` for the rows `R` of each group."""
        return np.stack([unbind_rows(self.twin, each, task) for each in rows])

    def _products(self, here, there, x, task):
        """The mean products of the layer's inputs here with themselves, and there's."""
        number = len(next(iter(x.values())))
        gram = cross = count = 0
        for start in range(0, number, BATCH_SIZE):
            batch = {
                name: array[start : start + BATCH_SIZE] for name, array in x.items()
            }
            index = np.full(len(next(iter(batch.values()))), task, "int32")
            ours, theirs = (
                input_rows(self.twin, model.predict_on_batch(given))
                for model, given in ((here, {**batch, "task": index}), (there, batch))
            )
            gram = gram + np.einsum("ngi,ngj->gij", ours, ours, optimize=True)
            cross = cross + np.einsum("ngi,ngj->gij", ours, theirs, optimize=True)
            count += len(ours)
        return gram / count, cross / count

    def _set(self, kernel, rows):
        rows = ops.convert_to_tensor(rows, kernel.dtype)
        kernel.assign(self.twin.kernel_of_rows(rows))


class InputProbes:
    """What layers are called with, in a superposed model and in those it holds.

    The K models take turns in one plain model: it need be compiled only once.

    Args:
        one: The superposed model, a `TaskModel`.
        kept: List of pairs of its layers with the K layers that each holds.
    """

    def __init__(self, one, kept):
        plain, pairs = build_plain(one, 0)
        self._copies = {id(layer): copy for layer, copy in pairs}
        self._kept = [(self._copies[id(twin)], layers) for twin, layers in kept]
        self._here = inputs_of_layers(Graph(one, takes_task=True))
        self._there = inputs_of_layers(Graph(plain))

    def hold(self, task):
        """Gives the plain model the weights of model k."""
        for copy, layers in self._kept:
            copy.set_weights(layers[task].get_weights())

    def models(self, layer):
        """Two models that answer with what a layer is called with, once a call."""
        return (
            keras.Model(inputs, called[id(each)])
            for (inputs, called), each in (
                (self._here, layer),
                (self._there, self._copies[id(layer)]),
            )
        )
