"""What there is to know of the Fisher information, by way of Keras' own `fit()`."""

import math

import keras
import numpy as np
from keras import ops

from keras_psp._core.data import read_examples

LABELS = ("model", "data")
BATCH_SIZE = 8


class Fisher:
    """Measures means of products of the gradients of a model's log-likelihood.

    Args:
        examples: Positive integer, of at most how many examples.
        labels: `"model"`, labels drawn from the model's own answers: its loss must be a
            (sparse) categorical crossentropy or the mean squared error. Then the
            gradients of different examples are uncorrelated with mean 0, and the
            products may be taken of sums over batches. Or `"data"`, for any loss, an
            example at a time.
        products: Function of a gradient that returns the list of its products.
        temperature: Positive number by which the logits are divided that labels are
            drawn from, and the gradients are of. With 1 there is next to nothing to
            learn from examples of which a model is sure; the larger, the more all
            count alike.

    Reference:
        [Kunstner et al., 2019](https://arxiv.org/abs/1905.12558), equations 2 and 3;
        sums over batches: [Liu et al., 2023](https://arxiv.org/abs/2305.14342),
        section 2.3.
    """

    def __init__(self, examples, labels, products, temperature=1.0):
        self.examples = examples
        self.labels = labels
        self.temperature = temperature
        self._products = products
        self._probe = None

    def __call__(self, model, data):
        """Returns float32 NumPy arrays for each of the model's trainable variables.

        Args:
            model: A compiled `keras.Model`; nothing of it changes.
            data: Batches `(inputs, targets)`, as a `tf.data.Dataset` or anything else
                to iterate over; or a tuple of arrays (or dictionaries of arrays).

        Raises:
            TypeError: `data` is neither.
            ValueError: `labels="model"` and another loss; the data are not of the
                model's shapes, none, or of a kind that its gradients are not finite.
        """
        x, y, _ = read_examples(data, self.examples)
        if self._probe is None or self._probe.inner is not model:
            self._probe = _Probe(model, self.labels, self.temperature)
            self._probe.compile(_Products(self._products))  # Once.
        # What does not fit is told here: on JAX a `fit()` that fails loses the weights.
        model(keras.tree.map_structure(lambda array: array[:1], x), training=False)
        probe = self._probe
        probe.reset()
        batch_size = 1 if self.labels == "data" else BATCH_SIZE
        probe.fit(x, y, batch_size=batch_size, verbose=0, shuffle=False)
        count = len(keras.tree.flatten(x)[0])
        found = [
            [ops.convert_to_numpy(total).astype("float32") / count for total in totals]
            for totals in probe.optimizer.totals
        ]
        for variable, arrays in zip(model.trainable_variables, found, strict=True):
            if not all(np.isfinite(array).all() for array in arrays):
                raise ValueError(
                    "The gradients must be finite; nothing has been consolidated. "
                    f"Received: NaN or inf in those of {variable.path!r}"
                )
        return found


class _Probe(keras.Model):
    """A model as it answers, whose loss is a batch's log-likelihood."""

    def __init__(self, model, labels, temperature):
        super().__init__(name="probe")
        self.labels = labels
        self.temperature = temperature
        self.loss_function = keras.losses.get(model.loss)
        self.inner = model
        self.seed_generator = keras.random.SeedGenerator(0)
        self._seed = ops.convert_to_numpy(self.seed_generator.state).copy()
        if labels == "model":
            self._kind, self._from_logits = _find_kind(self.loss_function)

    def reset(self):
        """Begins anew, with equal draws: what was measured before does not matter."""
        for total in keras.tree.flatten(self.optimizer.totals):
            total.assign(ops.zeros(total.shape, total.dtype))
        self.seed_generator.state.assign(self._seed)

    def call(self, inputs):
        return self.inner(inputs, training=False)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if self.labels == "data":  # Of one example.
            return ops.sum(self.loss_function(y, y_pred))
        if self._kind == "squared_error":
            # Off by one standard deviation of what this loss is the likelihood of.
            up = keras.random.uniform(ops.shape(y_pred), seed=self.seed_generator) < 0.5
            size = math.prod(y_pred.shape[1:])
            off = ops.where(up, 1.0, -1.0) * (size / 2) ** 0.5
            drawn = ops.stop_gradient(y_pred) + ops.cast(off, y_pred.dtype)
            return ops.sum(ops.square(y_pred - drawn)) / size
        logits = y_pred
        if not self._from_logits:  # Where none is too small to have a logarithm.
            logits = ops.log(ops.maximum(y_pred, keras.config.epsilon()))
        logits = logits / self.temperature
        drawn = keras.random.categorical(logits, 1, seed=self.seed_generator)
        losses = keras.losses.sparse_categorical_crossentropy(
            drawn[:, 0], logits, from_logits=True
        )
        # By the logits, these are the differences of probabilities and labels.
        return self.temperature * ops.sum(losses)


def _find_kind(loss):
    """Which likelihood a loss is of; and whether it is given logits."""
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    name = getattr(loss, "__name__", "") or type(loss).__name__
    kind = _KINDS.get(name.lower().replace("_", ""))
    if kind is None:
        raise ValueError(
            'With `labels="model"` a model must be compiled with a (sparse) '
            "categorical crossentropy or the mean squared error, from which it can "
            'draw labels; use `labels="data"` with others. '
            f"Received: loss={name}"
        )
    return kind, bool(config.get("from_logits", False))


_KINDS = {
    "categoricalcrossentropy": "crossentropy",
    "sparsecategoricalcrossentropy": "crossentropy",
    "meansquarederror": "squared_error",
}


class _Products(keras.optimizers.Optimizer):
    """Adds up products of gradients, and leaves the weights as they are."""

    def __init__(self, products):
        super().__init__(learning_rate=1.0, name="products")
        self.products = products
        self.totals = []

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for variable in variables:
            like = keras.KerasTensor(variable.shape, "float32")
            self.totals.append(
                [self.add_variable(each.shape) for each in self.products(like)]
            )

    def update_step(self, gradient, variable, learning_rate):
        totals = self.totals[self._get_variable_index(variable)]
        # TensorFlow's may hold some rows alone.
        gradient = ops.reshape(ops.convert_to_tensor(gradient), variable.shape)
        products = self.products(ops.cast(gradient, "float32"))
        for total, product in zip(totals, products, strict=True):
            self.assign_add(total, product)
