"""One layer's kernels, of many models, in one."""

import keras
import numpy as np
from keras import ops

from keras_psp.surgery.rows import input_rows
from keras_psp.surgery.rows import kernel_rows
from keras_psp.surgery.rows import unbind_rows

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
        self._set(kernel_rows(self.twin, self.twin.kernel) + sign * total)

    def fit(self, here, there, inputs, ridge):
        """Sets the kernel that answers most as the tasks' own do; see `superpose()`.

        Args:
            here: What `inputs_of_layers()` returned of the superposed model, of which
                the layers before this one are done.
            there: List of what it returned of the K models.
            inputs: List of a dictionary of arrays for each.
            ridge: Non-negative float.
        """
        twin = self.twin
        here = _model_of_inputs(here, twin)
        left = right = 0.0
        for k, (layer, x) in enumerate(zip(self.layers, inputs, strict=True)):
            gram, cross = self._products(here, _model_of_inputs(there[k], layer), x, k)
            # Groups of filters see groups of channels: all of it is done for each.
            groups, _, size = gram.shape
            # Inputs that are all zero show nothing: then what the kernels say counts.
            mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
            share = np.where(mean > 0, ridge * mean, 1.0)
            own, base = (
                np.moveaxis(np.reshape(rows, (size, groups, -1)), 1, 0)
                for rows in (self.rows[k], self.base)
            )
            wanted = cross @ own - gram @ base + share * (own - base)
            right = right + np.stack([unbind_rows(twin, each, k) for each in wanted])
            gram = gram + share * np.eye(size)
            # C^T G C = (C^T (C^T G)^T)^T
            bound = [
                unbind_rows(twin, unbind_rows(twin, each, k).T, k).T for each in gram
            ]
            left = left + np.stack(bound)
        solved = np.linalg.solve(left, right)
        self._set(np.reshape(np.moveaxis(solved, 0, 1), self.rows[0].shape))

    def _products(self, here, there, x, task):
        """The mean products of the layer's inputs here with themselves, and there's."""
        number = len(next(iter(x.values())))
        gram = cross = count = 0
        for start in range(0, number, BATCH_SIZE):
            batch = {
                name: array[start : start + BATCH_SIZE] for name, array in x.items()
            }
            index = np.full(len(next(iter(batch.values()))), task, "int32")
            # The models' inputs are alike, but may go by other names.
            own = dict(zip(there.input, batch.values(), strict=True))
            ours, theirs = (
                input_rows(self.twin, model.predict_on_batch(given))
                for model, given in ((here, {**batch, "task": index}), (there, own))
            )
            gram = gram + np.einsum("ngi,ngj->gij", ours, ours, optimize=True)
            cross = cross + np.einsum("ngi,ngj->gij", ours, theirs, optimize=True)
            count += len(ours)
        return gram / count, cross / count

    def _set(self, rows):
        rows = ops.convert_to_tensor(rows, self.twin.kernel.dtype)
        self.twin.kernel.assign(self.twin.kernel_of_rows(rows))


def _model_of_inputs(inputs_of_layers, layer):
    """A model that answers with what a layer is called with, once for each call."""
    inputs, called = inputs_of_layers
    return keras.Model(inputs, called[id(layer)])
