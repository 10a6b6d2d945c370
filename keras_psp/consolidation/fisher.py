"""The diagonal of the Fisher information, by way of Keras' own `fit()`."""

import keras
import numpy as np
from keras import ops

LABELS = ("model", "data")
BATCH_SIZE = 8


class Fisher:
    """Measures the mean squared gradients of a model's log-likelihood.

    Args:
        examples: Positive integer, of at most how many examples.
        labels: `"model"`, labels drawn from the model's own answers: its loss must be a
            (sparse) categorical crossentropy. Then the gradients of different examples
            are uncorrelated with mean 0, and the squares may be taken of sums over
            batches. Or `"data"`, for any loss, an example at a time.

    Reference:
        [Kunstner et al., 2019](https://arxiv.org/abs/1905.12558), equations 2 and 3;
        sums over batches: [Liu et al., 2023](https://arxiv.org/abs/2305.14342),
        section 2.3.
    """

    def __init__(self, examples, labels):
        self.examples = examples
        self.labels = labels
        self._probe = None

    def __call__(self, model, data):
        """Returns a float32 NumPy array for each of the model's trainable variables.

        Args:
            model: A compiled `keras.Model`; nothing of it changes.
            data: Batches `(inputs, targets)`, as a `tf.data.Dataset` or anything else
                to iterate over; or a tuple of arrays (or dictionaries of arrays).

        Raises:
            TypeError: `data` is neither.
            ValueError: `labels="model"` and another loss.
        """
        x, y = self._take(data)
        if self._probe is None or self._probe.inner is not model:
            self._probe = _Probe(model, self.labels)  # Compiled once.
            self._probe.compile(_SquaredGradients())
        probe = self._probe
        probe.reset()
        batch_size = 1 if self.labels == "data" else BATCH_SIZE
        probe.fit(x, y, batch_size=batch_size, verbose=0, shuffle=False)
        count = len(keras.tree.flatten(x)[0])
        return [
            ops.convert_to_numpy(square).astype("float32") / count
            for square in probe.optimizer.squares
        ]

    def _take(self, data):
        """The first examples, as arrays."""
        if isinstance(data, tuple) and len(data) == 2:
            batches = [data]
        elif hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
            batches = data
        else:
            raise TypeError(
                "`data` must hold batches `(inputs, targets)`, or be a pair of arrays. "
                f"Received: data of type {type(data).__name__}"
            )
        taken, count = [], 0
        for batch in batches:
            taken.append(keras.tree.map_structure(ops.convert_to_numpy, tuple(batch)))
            count += len(keras.tree.flatten(taken[-1])[0])
            if count >= self.examples:
                break
        return keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays)[: self.examples], *taken
        )


class _Probe(keras.Model):
    """A model as it answers, whose loss is a batch's log-likelihood."""

    def __init__(self, model, labels):
        super().__init__(name="probe")
        self.labels = labels
        self.loss_function = keras.losses.get(model.loss)
        self.inner = model
        self.seed_generator = keras.random.SeedGenerator(0)
        self._seed = ops.convert_to_numpy(self.seed_generator.state).copy()
        if labels == "model":
            self._from_logits = _find_from_logits(self.loss_function)

    def reset(self):
        """Begins anew, with equal draws: what was measured before does not matter."""
        for square in self.optimizer.squares:
            square.assign(ops.zeros(square.shape, square.dtype))
        self.seed_generator.state.assign(self._seed)

    def call(self, inputs):
        return self.inner(inputs, training=False)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if self.labels == "data":  # Of one example.
            return ops.sum(self.loss_function(y, y_pred))
        logits = y_pred if self._from_logits else ops.log(y_pred)
        drawn = keras.random.categorical(logits, 1, seed=self.seed_generator)
        losses = keras.losses.sparse_categorical_crossentropy(
            drawn[:, 0], y_pred, from_logits=self._from_logits
        )
        return ops.sum(losses)


def _find_from_logits(loss):
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    name = getattr(loss, "__name__", "") or type(loss).__name__
    if name.lower().replace("_", "") not in (
        "categoricalcrossentropy",
        "sparsecategoricalcrossentropy",
    ):
        raise ValueError(
            'With `labels="model"` a model must be compiled with a (sparse) '
            "categorical crossentropy, from which it can draw labels; use "
            f'`labels="data"` with others. Received: loss={name}'
        )
    return bool(config.get("from_logits", False))


class _SquaredGradients(keras.optimizers.Optimizer):
    """Adds up the squares of gradients, and leaves the weights as they are."""

    def __init__(self):
        super().__init__(learning_rate=1.0, name="squared_gradients")
        self.squares = []

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.squares = self.add_optimizer_variables(variables, "square")

    def update_step(self, gradient, variable, learning_rate):
        square = self.squares[self._get_variable_index(variable)]
        self.assign_add(square, ops.square(ops.cast(gradient, square.dtype)))
