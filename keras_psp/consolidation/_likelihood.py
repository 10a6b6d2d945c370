"""Finds the likelihood behind a model's loss, and draws labels from the model."""

import inspect
import math
from typing import Any

import keras
from keras import ops

from keras_psp._core import private

# Keras' own. A function or a class of the user's may have any name.
_KINDS = {
    keras.losses.BinaryCrossentropy: "binary",
    keras.losses.binary_crossentropy: "binary",
    keras.losses.CategoricalCrossentropy: "categorical",
    keras.losses.categorical_crossentropy: "categorical",
    keras.losses.SparseCategoricalCrossentropy: "categorical",
    keras.losses.sparse_categorical_crossentropy: "categorical",
    keras.losses.MeanSquaredError: "squared_error",
    keras.losses.mean_squared_error: "squared_error",
}


class Likelihood:
    """The sum of the losses of examples, with labels that the model draws.

    A loss counts as in `fit()`: an example's is its mean over the places that have a
    label of their own, or their sum with `reduction="sum"`, times the sample weight and
    the loss weight. Places that are masked, or have the label that the loss ignores, do
    not count.

    Args:
        model: A compiled `keras.Model`. Each of its outputs has a (binary, categorical
            or sparse categorical) crossentropy, the mean squared error, or `None`.
        temperature: Positive number by which the logits are divided.
        seed_generator: `keras.random.SeedGenerator`.

    Raises:
        ValueError: An output has another loss, or none has one.
    """

    def __init__(
        self,
        model: keras.Model,
        temperature: float,
        seed_generator: keras.random.SeedGenerator,
    ) -> None:
        self.temperature = temperature
        self.seed_generator = seed_generator
        self._names = getattr(model, "output_names", None)
        self._losses = keras.tree.map_structure(
            _find_kind, getattr(model, "loss", None)
        )
        self._weights = private.loss_weights(model)
        if not any(keras.tree.flatten(self._losses)):
            raise _error("None")

    def __call__(self, y_pred: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Returns the sum over a batch, a scalar.

        Args:
            y_pred: The model's outputs.
            y: Labels, which matter only where the loss ignores some of them.
            sample_weight: Weights of examples or places, or `None`.
        """
        total = 0.0
        for path, output in self._items(y_pred):
            loss = self._pick(self._losses, path)
            if loss is None:
                continue
            weight = self._pick(sample_weight, path)
            losses = self._lose(loss, output, self._pick(y, path), weight)
            scale = self._pick(self._weights, path)
            total = ops.add(total, losses if scale is None else losses * scale)
        return total

    def _items(self, y_pred, path=()):
        """The outputs, each with the indices and names that lead to it."""
        if isinstance(y_pred, dict):
            names, outputs = list(y_pred), list(y_pred.values())
        elif isinstance(y_pred, (list, tuple)):
            names, outputs = [None] * len(y_pred), y_pred
            if not path and len(self._names or ()) == len(y_pred):
                names = self._names
        else:
            return [(path or ((0, None),), y_pred)]
        return [
            item
            for step, output in zip(enumerate(names), outputs, strict=True)
            for item in self._items(output, (*path, step))
        ]

    def _pick(self, structure, path):
        """What belongs to an output, of what was given for one or for all."""
        for i, name in path:
            if isinstance(structure, dict):
                if name is None and len(structure) == 1:
                    (name,) = structure
                structure = structure.get(name)
            elif isinstance(structure, list) or type(structure) is tuple:
                structure = structure[i]
        return structure

    def _lose(self, loss, output, labels, weight):
        kind, from_logits, ignored, axis, is_sum = loss
        mask = private.mask_of(output)
        output = ops.cast(output, "float32")
        if len(output.shape) == 1:
            output = ops.expand_dims(output, -1)
        output = ops.moveaxis(output, axis, -1)
        places = output.shape[1:-1]
        if kind == "squared_error":
            count = output.shape[-1] if is_sum else math.prod(output.shape[1:])
            losses = self._draw_squared_error(output, count)
        else:
            losses = getattr(self, f"_draw_{kind}")(output, from_logits)
        if mask is None or len(mask.shape) != len(losses.shape):
            mask = ops.ones((1, *places), "bool")
        if ignored is not None and labels is not None:
            labels = ops.reshape(labels, ops.shape(losses))
            counted = ops.not_equal(labels, ops.cast(ignored, labels.dtype))
            mask = ops.logical_and(mask, counted)
        shares = ops.cast(mask, "float32")
        axes = tuple(range(1, len(losses.shape)))
        if axes and not is_sum:
            number = ops.sum(shares, axis=axes, keepdims=True)
            shares = ops.divide(shares, ops.maximum(number, 1.0))
        if weight is not None:
            weight = ops.cast(weight, "float32")
            if len(weight.shape) > len(losses.shape):
                weight = ops.squeeze(weight, -1)
            more = len(losses.shape) - len(weight.shape)
            weight = ops.reshape(weight, (*ops.shape(weight), *(1,) * more))
            shares = ops.multiply(shares, weight)
        return ops.sum(ops.multiply(losses, shares))

    # Each returns the losses of all places, of the shape of the labels.

    def _draw_categorical(self, output, from_logits):
        logits = output
        if not from_logits:  # Where none is too small to have a logarithm.
            logits = ops.log(ops.maximum(output, keras.config.epsilon()))
        logits = logits / self.temperature
        # Of NaN nothing can be drawn; the loss will be NaN all the same.
        known = ops.where(ops.isnan(logits), 0.0, logits)
        rows = ops.reshape(ops.stop_gradient(known), (-1, logits.shape[-1]))
        drawn = keras.random.categorical(rows, 1, seed=self.seed_generator)
        drawn = ops.reshape(drawn, ops.shape(logits)[:-1])
        losses = keras.losses.sparse_categorical_crossentropy(
            drawn, logits, from_logits=True
        )
        # By the logits, these are the differences of probabilities and labels.
        return self.temperature * losses

    def _draw_binary(self, output, from_logits):
        logits = output
        if not from_logits:
            least = keras.config.epsilon()
            output = ops.clip(output, least, 1 - least)
            logits = ops.log(output) - ops.log1p(-output)
        logits = logits / self.temperature
        chance = ops.stop_gradient(ops.sigmoid(logits))
        uniform = keras.random.uniform(ops.shape(logits), seed=self.seed_generator)
        drawn = ops.cast(uniform < chance, "float32")
        losses = keras.losses.binary_crossentropy(drawn, logits, from_logits=True)
        return self.temperature * losses

    def _draw_squared_error(self, output, count):
        # Off by one standard deviation of what this loss is the likelihood of.
        uniform = keras.random.uniform(ops.shape(output), seed=self.seed_generator)
        off = ops.where(uniform < 0.5, 1.0, -1.0)
        off = off * (count / 2) ** 0.5
        drawn = ops.stop_gradient(output) + off
        return ops.mean(ops.square(output - drawn), axis=-1)


def _find_kind(loss):
    """Which likelihood a loss is of, and what of its config matters."""
    if loss is None:
        return None
    loss = keras.losses.get(loss)
    is_function = inspect.isfunction(loss)
    kind = _KINDS.get(loss if is_function else type(loss))
    if kind is None:
        raise _error(getattr(loss, "__name__", type(loss).__name__))
    given = {} if is_function else private.loss_arguments(loss)
    return _Kind(
        kind,
        bool(given.get("from_logits")),
        given.get("ignore_class"),
        given.get("axis", -1),
        not is_function and loss.reduction == "sum",
    )


class _Kind:
    """Values that `keras.tree` takes for one."""

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


def _error(name):
    return ValueError(
        'With `labels="model"` a model must be compiled with a (binary, categorical or '
        "sparse categorical) crossentropy or the mean squared error, from which it can "
        'draw labels; use `labels="data"` with others. '
        f"Received: loss={name}"
    )
