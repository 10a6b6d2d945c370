"""How much each task of a model reads of what the others store."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_list
from keras_psp._core.data import read_inputs
from keras_psp._core.table import Shown
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import read_model
from keras_psp._reading.listen import Listener
from keras_psp._reading.rows import input_rows
from keras_psp._reading.rows import kernel_rows
from keras_psp._reading.rows import unbind_rows
from keras_psp._reading.task_layers import as_task_model
from keras_psp._reading.task_layers import find_superposed_layers
from keras_psp._reading.within import holders
from keras_psp.diagnostics import _plots as plots

BATCH_SIZE = 64
NUM_ROWS = 512  # Of each task's inputs to a layer.


@dataclass(frozen=True, eq=False)
class LayerInterference:
    """What the tasks read of one another in one layer.

    Attributes:
        name: The layer's.
        width: Integer, the number M of inputs that its context binds.
        energies: float64 array of shape `(K, K)`; row j is what task j reads, column k
            what task k stores. See `interference()`.
    """

    name: str
    width: int
    energies: np.ndarray

    @property
    def signal(self):
        """What each task reads of itself, `(K,)`."""
        return np.diagonal(self.energies)

    @property
    def interference(self):
        """What each task reads of all the others together, `(K,)`."""
        return self.energies.sum(axis=1) - self.signal

    @property
    def share(self):
        """The interference as a share of the signal, means over the tasks."""
        signal = float(self.signal.mean())
        return float(self.interference.mean()) / signal if signal else 0.0

    @property
    def verdict(self):
        """`"low"`, `"noticeable"` from 0.05 of the signal, or `"large"` from 0.5.

        `diagnostics.capacity` says what such shares cost in accuracy.
        """
        return ("low", "noticeable", "large")[
            (self.share >= 0.05) + (self.share >= 0.5)
        ]

    @property
    def predicted(self):
        """The interference of random orthogonal contexts, `(K - 1) / M`."""
        return (len(self.energies) - 1) / self.width


@dataclass(frozen=True, eq=False)
class Interference(Shown):
    """What the tasks of a model read of one another; as text, a table of the layers.

    Attributes:
        layers: Tuple of a `LayerInterference` for each superposed layer.
    """

    layers: tuple

    @property
    def rows(self):
        """A dictionary for each layer: means over the tasks, and the prediction."""
        return [
            {
                "layer": layer.name,
                "M": layer.width,
                "signal": float(layer.signal.mean()),
                "interference": float(layer.interference.mean()),
                "(K-1)/M": layer.predicted,
                "verdict": layer.verdict,
            }
            for layer in self.layers
        ]

    @property
    def verdict(self):
        """What the layer with most interference, for its signal, makes of the tasks."""
        worst = max(self.layers, key=lambda layer: layer.share)
        return f"{worst.verdict}: {worst.name} reads {worst.share:.2g} of its signal"

    def plot(self, path=None):
        """Draws the energies of each layer, beside the prediction.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        return plots.save(plots.draw_interference(self.layers), path)

    def __str__(self):
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'':{width}}       M     signal  interference  (K-1)/M  verdict"]
        lines += [
            f"{layer.name:{width}}  {layer.width:6}  {layer.signal.mean():9.2e}  "
            f"{layer.interference.mean():12.2e}  {layer.predicted:.1e}  {layer.verdict}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def interference(
    model: keras.Model, data: Any = None, models: Any = None
) -> Interference:
    """Measures how much each task reads of what the others store, layer by layer.

    ```
    E[j, k] = tr(G_j S_k) / (tr(G_j) tr(S_k))
    ```

    where `G_j` is the mean of z^T z over task j's inputs z to the layer, bound to its
    context, and `S_k` stands for what task k stores there: `C_k^T D_k D_k^T C_k` for
    the kernels `D_k` that were superposed, if their `models` are given. Else `S_k =
    G_k`, for gradient descent on task k moves the kernel only along its bound inputs.
    So E is the energy with which task j reads what task k stored, as a share of the
    most that it could be, were all of both in one direction. The diagonal is the
    signal. Off it, random orthogonal contexts are predicted to give `1 / M`, and no
    contexts as much as the signal. What counts is how far the interference of a task,
    the sum over all others, lies below its signal.

    Between the two lie permutations: the mean of inputs that are not negative, as
    rectified ones are, looks alike however it is shuffled. Signs take it away, but
    inputs of which few carry the energy, as pixels at the rim are always black,
    interfere as if M were smaller.

    Args:
        model: `keras_psp.models.TaskModel` of K tasks, or a converted model of a class
            of its own.
        data: List of one set of unlabelled inputs for each task, as `superpose()` takes
            it: an array, a list or dictionary of arrays if the model has several
            inputs, or batches of these. Defaults to the same 64 examples for every
            task, uniform in [0, 1): what contexts do to inputs that are not negative.
        models: List of the K plain models that were superposed. From their kernels the
            base kernel and each task's part of low rank are taken away, if the model
            has them.

    Returns:
        An `Interference`: its `layers` have a `name`, a `width` M, `energies`, float64
        `(K, K)`, and made of these `signal` and `interference`, `(K,)`, and
        `predicted`. 0 where a task reads or stores nothing, or was removed. `print()`
        shows a table, and `plot(path=None)` draws them. Groups of filters count as much
        as they could read. Of more than 512 inputs of a task to a layer (a convolution
        has one for each place) 512 are drawn, from a fixed seed; the signal of n inputs
        is at least 1 / n, even if they have nothing in common.

    Raises:
        TypeError: `model` is not a `TaskModel`, or `data` not as above.
        ValueError: The model has no superposed layer, or calls one with another task
            than its own; there are not K data or models; the data are empty, not
            finite, or of another shape; there are none, and an input is of integers or
            of unknown size; the models have other layers; what a layer reads or stores
            is not finite.

    Example:

    >>> import keras_psp
    >>> model = keras_psp.models.mlp((64,), num_classes=10, num_tasks=5)
    >>> layer = keras_psp.diagnostics.interference(model).layers[0]
    >>> layer.name, layer.width, layer.energies.shape, layer.predicted
    ('dense_0', 64, (5, 5), 0.0625)
    >>> bool((layer.interference < layer.signal).all())
    True

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 2, of what is
        read beside the task's own.
    """
    layers = find_superposed_layers(model)
    model = as_task_model(model)  # With the same layers.
    graph = Graph(model, takes_task=True)
    data = _check_data(graph, model.num_tasks, data)
    kernels = None
    if models is not None:
        kernels = _kernels(graph, layers, model.num_tasks, models)
    stored = read = _bound_inputs(graph, layers, data)
    if kernels is not None:
        stored = _bound_kernels(layers, kernels, read)
    return Interference(
        tuple(
            LayerInterference(
                layer.name, layer.context.input_spec.axes[-1], _energies(*rows)
            )
            for layer, *rows in zip(layers, read, stored, strict=True)
        )
    )


def _check_data(graph, num_tasks, data):
    """Returns a list of a dictionary of arrays for each task."""
    if data is None:
        return [_draw(graph)] * num_tasks
    data = check_list("data", data, "one set of inputs for each of the tasks")
    if len(data) != num_tasks:
        raise ValueError(
            "`data` must hold inputs for each of the tasks. "
            f"Received: {len(data)} sets of inputs for {num_tasks} tasks"
        )
    inputs = {name: graph.inputs[name] for name in graph.names}
    return [read_inputs(each, inputs) for each in data]


def _draw(graph):
    rng, drawn = np.random.default_rng(0), {}
    for name in graph.names:
        shape, dtype = graph.inputs[name].shape[1:], graph.inputs[name].dtype
        if None in shape or not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                "`data` must be given, as no inputs can be drawn but numbers of known "
                f"shape. Received: data=None, for {name!r} of shape {shape} and dtype "
                f"{dtype}"
            )
        drawn[name] = rng.uniform(size=(BATCH_SIZE, *shape)).astype("float32")
    return drawn


def _kernels(graph, layers, num_tasks, models):
    """Returns for each layer a list of each task's kernel, without the base's."""
    models = check_list("models", models, "a model for each of the tasks")
    if len(models) != num_tasks:
        raise ValueError(
            "`models` must hold a model for each of the tasks. "
            f"Received: {len(models)} models for {num_tasks} tasks"
        )
    # Of all but the first, layers may go by other names.
    every = [graph.layers, *(read_model(each).layers for each in models)]
    every = [leaf_layers(holders(layers)) for layers in every]
    first = [layer.name for layer in every[1]]
    if len({len(layers) for layers in every}) > 1 or first != [
        layer.name for layer in every[0]
    ]:
        raise ValueError(
            "`models` must be those that were superposed, the first of which has the "
            f"names of the layers. Received: {[model.name for model in models]}"
        )
    alike = {id(first): rest for first, *rest in zip(*every, strict=True)}
    return [
        [_difference(layer, each, k) for k, each in enumerate(alike[id(layer)])]
        for layer in layers
    ]


def _difference(layer, plain, task):
    kernel = getattr(plain, "kernel", None)
    if kernel is None or tuple(kernel.shape) != tuple(layer.kernel.shape):
        raise ValueError(
            "`models` must be those that were superposed, with kernels of the same "
            f"shapes. Received: {plain.name!r} for {layer.name!r}"
        )
    rows = kernel_rows(layer, kernel)
    beside = layer.kernel_beside(task)
    return rows if beside is None else rows - kernel_rows(layer, beside)


def _bound_inputs(graph, layers, data):
    """Returns for each layer a list of each task's rows; see `_bind()`."""
    taps = Listener(graph.model).probe(layers)
    removed = graph.model.removed_tasks
    tasks = np.arange(len(data), dtype="int32")
    if keras.backend.is_float_dtype(graph.inputs["task"].dtype):
        tasks = np.eye(len(data), dtype="float32")
    bound = [[] for _ in layers]
    for k, arrays in enumerate(data):
        if k in removed:
            for own, layer in zip(bound, layers, strict=True):
                own.append(_no_rows(layer))
            continue
        rows = _sample_rows(taps, layers, arrays, tasks[k])
        for own, layer, each in zip(bound, layers, rows, strict=True):
            own.append(_bind(layer, np.moveaxis(each, 1, 0), k))
    return bound


def _sample_rows(taps, layers, arrays, task):
    """Returns for each layer `(n, groups, M)`, about `NUM_ROWS` at most."""
    rng = np.random.default_rng(0)  # Equal data are to give equal rows.
    starts = range(0, len(next(iter(arrays.values()))), BATCH_SIZE)
    parts = []
    for start in starts:
        batch = {name: x[start : start + BATCH_SIZE] for name, x in arrays.items()}
        batch["task"] = np.stack([task] * len(next(iter(batch.values()))))
        calls = taps.predict_on_batch(batch)
        rows = [input_rows(*each) for each in zip(layers, calls, strict=True)]
        number = max(1, NUM_ROWS // len(starts))
        parts.append([each[rng.permutation(len(each))[:number]] for each in rows])
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def _bound_kernels(layers, kernels, read):
    """Returns for each layer a list of each task's rows; see `_bind()`."""
    bound = []
    for layer, own, (inputs, *_) in zip(layers, kernels, read, strict=True):
        # Each group of inputs has filters of its own: (groups, n, M) of (M, N).
        shape = len(own[0]), len(inputs), -1
        rows = [kernel.reshape(shape).transpose(1, 2, 0) for kernel in own]
        removed = layer.removed_tasks
        bound.append(
            [
                _no_rows(layer) if k in removed else _bind(layer, each, k)
                for k, each in enumerate(rows)
            ]
        )
    return bound


def _no_rows(layer):
    """Stands for what a task that was removed reads and stores."""
    shape = layer.kernel_rows(keras.KerasTensor(layer.kernel_shape)).shape
    return np.zeros((getattr(layer, "groups", 1), 1, shape[0]), "float32")


def _bind(layer, rows, task):
    """Binds rows `(groups, n, M)`. Of n > M it returns M, whose products are alike."""
    if not np.isfinite(rows).all():
        raise ValueError(
            f"What {layer.name!r} reads and stores must be finite. Received: NaN or "
            f"inf for task {task}"
        )
    # x C_k = (C_k^T x^T)^T: inputs are bound as kernels are unbound.
    flat = rows.reshape(-1, rows.shape[-1])
    bound = unbind_rows(layer, flat.T, task).T.reshape(rows.shape)
    return np.linalg.qr(bound, mode="r").astype("float32")


def _energies(read, stored):
    """Returns `E`, of lists of each task's rows `(groups, n, M)`."""
    # tr(Z^T Z S^T S) = |Z S^T|^2, and tr(Z^T Z) = |Z|^2.
    energies = [
        [_sum_squares(z @ s.swapaxes(1, 2)).sum() for s in stored] for z in read
    ]
    ours, theirs = (
        np.stack([_sum_squares(x) for x in rows]) for rows in (read, stored)
    )
    most = ours @ theirs.T
    return np.divide(energies, most, out=np.zeros_like(most), where=most > 0)


def _sum_squares(rows):
    """The sum for each group, `(groups,)`."""
    return np.sum(np.square(rows), axis=(1, 2), dtype="float64")
