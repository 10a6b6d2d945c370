"""One layer's kernels in many models, and the one superposed kernel that holds them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._reading.listen import Listener
from keras_psp._reading.rows import input_rows
from keras_psp._reading.rows import kernel_rows
from keras_psp._reading.rows import unbind_rows
from keras_psp.layers._superposed import Superposed
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery.extract import build_plain

BATCH_SIZE = 256
RIDGE = 1e-3


class Kernel:
    """The kernels of one layer in K models, and the superposed layer to hold them.

    Args:
        superposed: The superposed layer. Its base kernel, if it has one, is that of the
            model that the others were trained from. A task's part of low rank stays
            what it is.
        layers: List of the K Keras layers.
        tasks: Which tasks they are. By default the first ones.

    Raises:
        ValueError: One of their kernels is not finite: all tasks would read it.
    """

    def __init__(
        self,
        superposed: Superposed,
        layers: Sequence[keras.layers.Layer],
        tasks: Sequence[int] | None = None,
    ) -> None:
        self.superposed = superposed
        self.layers = layers
        self.tasks = range(len(layers)) if tasks is None else tasks
        self.rows = [kernel_rows(superposed, layer.kernel) for layer in layers]
        for k, rows in zip(self.tasks, self.rows, strict=True):
            if not np.isfinite(rows).all():
                raise ValueError(
                    "Kernels must be finite to be kept in one that all tasks read. "
                    f"Received: NaN or infinity in {superposed.name!r} for task {k}"
                )

    def add_up(self, sign: int = 1) -> None:
        """Adds `sum_k C_k^T D_k` to the kernel. `D_k` is the difference from the base.

        Args:
            sign: 1 to add, -1 to subtract.
        """
        total = sum(
            unbind_rows(self.superposed, change, k)
            for k, change in zip(self.tasks, self._changes(), strict=True)
        )
        kernel = self.superposed.kernel
        self._set(kernel, kernel_rows(self.superposed, kernel) + sign * total)

    def expected_leak(self, present: Sequence[int]) -> float:
        """Returns how far `add_up()` moves the outputs of the tasks that are there.

        Args:
            present: These tasks.

        Returns:
            `sqrt(sum_k |D_k|^2) / |W_j|`, the mean over these tasks j: the size of the
            change relative to the outputs, for inputs without a preferred direction.
        """
        change = np.sqrt(sum(np.sum(np.square(each)) for each in self._changes()))
        sizes = [
            np.linalg.norm(
                ops.convert_to_numpy(self.superposed.task_kernel(k)).astype("float64")
            )
            for k in present
        ]
        return float(change / max(np.mean(sizes), np.finfo("float32").tiny))

    def fit(
        self, probes: "InputProbes", data: Sequence[dict[str, np.ndarray]], ridge: float
    ) -> None:
        """Sets the kernels to the least squares solution; see `superpose()`.

        Args:
            probes: The `InputProbes` of the superposed model, in which the layers
                before this one have been fitted.
            data: List of a dictionary of arrays for each task.
            ridge: Non-negative float.

        Raises:
            ValueError: The data do not show all inputs, and the ridge is 0.
        """
        superposed = self.superposed
        here, there = probes.models(superposed)
        left = right = 0.0
        for i, (k, x) in enumerate(zip(self.tasks, data, strict=True)):
            probes.hold(i)
            gram, cross = self._products(here, there, x, k)
            # Groups of filters see groups of channels: each has a solution of its own.
            groups, _, size = gram.shape
            # Inputs that are all zero show nothing. Then only the kernels count.
            mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / size
            share = np.where(mean > 0, ridge * mean, 1.0) * np.eye(size)
            own, beside = (
                np.moveaxis(np.reshape(rows, (size, groups, -1)), 1, 0)
                for rows in (self.rows[i], self._beside(i))
            )
            wanted = cross @ own - gram @ beside + share @ (own - beside)
            gram = gram + share
            half = self._unbind(gram, k)  # C^T G; its transpose is G C.
            full = self._unbind(np.swapaxes(half, 1, 2), k)
            bound = self._unbind(wanted, k)
            if superposed.base_kernel is not None:
                # The ridge holds the base as well. Where contexts are the same, nothing
                # else decides what belongs to the base and what to the kernel.
                rest = np.swapaxes(half, 1, 2)
                full = np.block([[full, half], [rest, gram + share]])
                bound = np.concatenate([bound, wanted], axis=1)
            left, right = left + full, right + bound
        try:
            solved = np.moveaxis(np.linalg.solve(left, right), 0, 1)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"The data do not show all inputs of {superposed.name!r}: `ridge` must "
                f"be positive. Received: ridge={ridge}"
            ) from None
        shape = self.rows[0].shape
        self._set(superposed.kernel, np.reshape(solved[:size], shape))
        if superposed.base_kernel is not None:
            base = kernel_rows(superposed, superposed.base_kernel)
            change = np.reshape(solved[size:], shape)
            self._set(superposed.base_kernel, base + change)

    def _beside(self, i):
        """Returns the rows of what the i-th layer's task sees beside the kernel."""
        beside = self.superposed.kernel_beside(self.tasks[i])
        if beside is None:
            return np.zeros_like(self.rows[i])
        return kernel_rows(self.superposed, beside)

    def _changes(self):
        """Yields each layer's rows, without what its task sees beside the kernel."""
        for i, rows in enumerate(self.rows):
            yield rows - self._beside(i)

    def _unbind(self, rows, task):
        """Returns `C_k^T R` for the rows `R` of each group."""
        return np.stack([unbind_rows(self.superposed, each, task) for each in rows])

    def _products(self, here, there, x, task):
        """Returns the mean products of the layer's inputs: own by own, own by theirs.

        Args:
            here: Probe of the layer's inputs in the superposed model.
            there: Probe of its inputs in the task's own model.
            x: Dictionary of arrays.
            task: Integer.
        """
        number = len(next(iter(x.values())))
        gram = cross = count = 0
        for start in range(0, number, BATCH_SIZE):
            batch = {
                name: array[start : start + BATCH_SIZE] for name, array in x.items()
            }
            index = np.full(len(next(iter(batch.values()))), task, "int32")
            ours, theirs = (
                input_rows(self.superposed, model.predict_on_batch(given)[0])
                for model, given in ((here, {**batch, "task": index}), (there, batch))
            )
            gram = gram + np.einsum("ngi,ngj->gij", ours, ours, optimize=True)
            cross = cross + np.einsum("ngi,ngj->gij", ours, theirs, optimize=True)
            count += len(ours)
        return gram / count, cross / count

    def _set(self, kernel, rows):
        rows = ops.convert_to_tensor(rows, kernel.dtype)
        kernel.assign(self.superposed.kernel_of_rows(rows))


class InputProbes:
    """What layers are called with, in a superposed model and in those that it holds.

    The K models take turns in one plain model, which is compiled only once.

    Args:
        model: The superposed model.
        held: List of pairs of its layers with the K layers that each holds.
    """

    def __init__(
        self,
        model: TaskModel,
        held: Sequence[tuple[keras.layers.Layer, Sequence[keras.layers.Layer]]],
    ) -> None:
        plain, pairs = build_plain(model, model.present_tasks[0], is_whole=True)
        self._copies = {id(layer): copy for layer, copy in pairs}
        self._held = [(self._copies[id(layer)], layers) for layer, layers in held]
        self._here, self._there = Listener(model), Listener(plain)

    def hold(self, i: int) -> None:
        """Gives the plain model the weights of the i-th model."""
        for copy, layers in self._held:
            copy.set_weights(layers[i].get_weights())

    def models(self, layer: keras.layers.Layer) -> tuple[Any, Any]:
        """Returns two probes of what a layer is called with, here and there."""
        copy = self._copies[id(layer)]
        return self._here.probe([layer]), self._there.probe([copy])
