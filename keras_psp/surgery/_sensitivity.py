"""How much a model's answers change with the outputs of its layers."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import gradient

DRAWS = 2
# What is added to the diagonal, as a share of its mean: derivatives tell only what
# small errors do.
DAMPING = 0.1


class Sensitivity:
    """Measures how much a model's answers change with the outputs of its layers.

    A small change E of what a layer computes before its activation changes the answers
    by about `E^T H E`, as a share of their variance.

    Args:
        model: Plain Keras model, whose layers' activations are replaced.
        layers: List of its layers with a kernel.
    """

    def __init__(self, model: keras.Model, layers: Sequence[Any]) -> None:
        self._model, self._layers = model, layers
        self._shapes: list[tuple[int, Any]] = []  # Of each call's outputs.
        self._shifts: Any = None  # What is added to all outputs, one after another.
        for i, layer in enumerate(layers):
            layer.activation = self._shift(i, layer.activation)

    def measure(self, batches: Sequence[Any]) -> list[np.ndarray]:
        """Returns H for each layer, float32 `(N, N)` and positive definite.

        It is estimated from derivatives of random sums of the answers, as if places in
        the outputs did not depend on one another.

        Args:
            batches: List of inputs that the model takes.
        """
        draw = np.random.default_rng(0)
        answers = [self._answer(x) for x in batches]
        variances = [
            np.var(np.concatenate(each), 0).sum() for each in zip(*answers, strict=True)
        ]
        sizes = np.sqrt(np.maximum(variances, 1e-12))
        count = DRAWS * sum(len(each[0]) for each in answers)
        products: list[Any] = [0.0] * len(self._layers)
        for x, ys in zip([*batches] * DRAWS, answers * DRAWS, strict=True):
            signs = [
                (draw.choice([-1.0, 1.0], y.shape) / size).astype("float32")
                for y, size in zip(ys, sizes, strict=True)
            ]
            for i, derivatives in self._differentiate(x, signs):
                rows = _rows(self._layers[i], derivatives)
                products[i] = products[i] + rows.T @ rows / count
        return [
            _damp(layer, each)
            for layer, each in zip(self._layers, products, strict=True)
        ]

    def _answer(self, x):
        self._shapes = []
        answers = keras.tree.flatten(self._model(x, training=False))
        return [ops.convert_to_numpy(each) for each in answers]

    def _differentiate(self, x, signs):
        """Yields derivatives of a sum of the answers by each call's outputs."""
        self._answer(x)
        shapes = self._shapes
        ends = np.cumsum([np.prod(shape) for _, shape in shapes])

        def sum_up(flat):
            shifts = ops.split(flat, ends[:-1].tolist()) if len(ends) > 1 else [flat]
            self._shifts = iter(shifts)
            answers = keras.tree.flatten(self._model(x, training=False))
            return sum(
                ops.sum(ops.multiply(ops.cast(y, "float32"), sign))
                for y, sign in zip(answers, signs, strict=True)
            )

        flat = ops.convert_to_numpy(gradient(sum_up, ops.zeros((int(ends[-1]),))))
        self._shifts = None
        for (i, shape), part in zip(shapes, np.split(flat, ends[:-1]), strict=True):
            yield i, part.reshape(shape)

    def _shift(self, i: int, activation: Callable | None) -> Callable:
        def shifted(outputs):
            if self._shifts is None:
                self._shapes.append((i, tuple(outputs.shape)))
            else:
                shift = ops.reshape(next(self._shifts), outputs.shape)
                outputs = ops.add(outputs, ops.cast(shift, outputs.dtype))
            return outputs if activation is None else activation(outputs)

        return shifted


def ends_with_columns(layer: keras.layers.Layer) -> bool:
    """Whether the outputs of a layer end with the columns of its kernel, in order."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return True
    inputs, kernel, outputs = layer.equation.replace("->", ",").split(",")
    return outputs.endswith("".join(x for x in kernel if x not in inputs))


def _rows(layer, outputs):
    if getattr(layer, "data_format", None) == "channels_first":
        outputs = np.moveaxis(outputs, 1, -1)
    sizes = layer.kernel.shape[-1:]
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel, _ = layer.equation.replace("->", ",").split(",")
        every = zip(kernel, layer.kernel.shape, strict=True)
        sizes = [size for x, size in every if x not in inputs]
    return outputs.reshape(-1, np.prod(sizes))


def _damp(layer, products):
    diagonal = np.eye(len(products)) * np.trace(products) / len(products)
    if not ends_with_columns(layer):
        products = diagonal
    tiny = np.finfo("float32").tiny * np.eye(len(products))
    return (products + DAMPING * diagonal + tiny).astype("float32")
