"""Measures the Fisher information through Keras' own `fit()`."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core import private
from keras_psp._core.data import read_examples
from keras_psp._core.data import to_numpy
from keras_psp._core.distribution import layout_like
from keras_psp._core.distribution import mean_over_workers
from keras_psp._core.distribution import whole_batches
from keras_psp._core.one_thread import one_thread
from keras_psp.consolidation._likelihood import Likelihood
from keras_psp.models._takes_tasks import TakesTasks

LABELS = ("model", "data")
BATCH_SIZE = 8


class Fisher:
    """Measures means of products of the gradients of a model's log-likelihood.

    Args:
        examples: Positive integer, of at most how many examples.
        labels: `"model"`, labels drawn from the model's own answers; see `Likelihood`
            for which losses. Then the gradients of different examples are uncorrelated
            with mean 0, and the products may be taken of sums over batches. Or
            `"data"`, for any loss, one example at a time.
        products: Function of a gradient that returns the list of its products.
        wanted: Function of a variable, whether its gradient is of interest.
        temperature: Positive number by which the logits are divided that labels are
            drawn from, and the gradients are of. With 1 there is next to nothing to
            learn from examples of which a model is sure; the larger, the more all
            count alike.

    Reference:
        [Kunstner et al., 2019](https://arxiv.org/abs/1905.12558), equations 2 and 3;
        sums over batches: [Liu et al., 2023](https://arxiv.org/abs/2305.14342),
        section 2.3.
    """

    def __init__(
        self,
        examples: int,
        labels: str,
        products: Callable,
        wanted: Callable[[Any], bool],
        temperature: float = 1.0,
    ) -> None:
        self.examples = examples
        self.labels = labels
        self.temperature = temperature
        self._products, self._wanted = products, wanted
        self._probe: Any = None

    def __call__(self, model: keras.Model, data: Any) -> list[list[np.ndarray]]:
        """Returns float32 NumPy arrays for each of the model's trainable variables.

        For variables that are not wanted it returns empty lists.

        Args:
            model: A compiled `keras.Model`; nothing of it changes.
            data: Examples in any form that `read_examples()` takes. If there are more
                than `examples`, some are drawn.

        Raises:
            TypeError: `data` is in no such form.
            ValueError: `labels="model"` and another loss; the data are not of the
                model's shapes, none, or of a kind that its gradients are not finite.
        """
        x, y, sample_weight = read_examples(data, self.examples)
        if hasattr(model, "preprocess_samples"):  # Of KerasHub's models.
            given = model.preprocess_samples(x, y, sample_weight)
            x, y, sample_weight = keras.tree.map_structure(
                lambda part: None if part is None else to_numpy(part),
                keras.utils.unpack_x_y_sample_weight(given),
            )
        if isinstance(model, TakesTasks):
            x = model.check_inputs(x)  # Tasks may be given by name.
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        given = {key: part for key, part in given.items() if part is not None}
        if self._probe is None or not self._probe.is_of(model):
            probe = _Probe(model, self.labels, self.temperature)
            probe.compile(_Products(self._products, self._wanted))  # Once.
            self._probe = probe
        probe = self._probe
        metrics = [(v, ops.convert_to_numpy(v)) for v in model.metrics_variables]
        try:
            # What does not fit is told here, before anything is compiled.
            probe(keras.tree.map_structure(lambda array: array[:1], given))
            probe.reset()
            batch_size = 1 if self.labels == "data" else BATCH_SIZE
            with one_thread(probe), private.kept_weights(probe), whole_batches():
                probe.fit(given, batch_size=batch_size, verbose=0, shuffle=False)
        finally:
            for variable, value in metrics:
                variable.assign(value)
        count = len(keras.tree.flatten(x)[0])
        means = [
            ops.convert_to_numpy(total).astype("float32") / count
            for total in keras.tree.flatten(probe.optimizer.totals)
        ]
        means = mean_over_workers(model, means, count)
        found = keras.tree.pack_sequence_as(probe.optimizer.totals, means)
        for variable, arrays in zip(model.trainable_variables, found, strict=True):
            if not all(np.isfinite(array).all() for array in arrays):
                raise ValueError(
                    "The gradients must be finite; nothing has been consolidated. "
                    f"Received: NaN or inf in those of {variable.path!r}"
                )
        return found


class _Probe(keras.Model):
    """A model that answers its examples with the sum of their log-likelihoods.

    It takes examples and labels as one input. The loss is thus computed in the same
    call as the answers, where Keras keeps what a model adds with `add_loss()`.
    """

    is_probe = True  # Models that get more tasks need not grow its optimizer.

    def __init__(self, model, labels, temperature):
        # Labels are not cast: the model does with its inputs what it always does.
        super().__init__(name="probe", dtype="float32", autocast=False)
        self.inner = model
        self.inner_loss = private.compiled_loss(model)
        self.seed_generator = keras.random.SeedGenerator(0)
        self._seed = ops.convert_to_numpy(self.seed_generator.state).copy()
        self.likelihood = None
        if labels == "model":
            self.likelihood = Likelihood(model, temperature, self.seed_generator)

    def is_of(self, model):
        """Whether it was made for a model as that is compiled now, with its weights."""
        trained = private.trained_variables(self.optimizer)
        return (
            self.inner is model
            and self.inner_loss is private.compiled_loss(model)
            and [id(v) for v in trained] == [id(v) for v in model.trainable_variables]
        )

    def reset(self):
        """Begins anew, with equal draws: what was measured before does not matter."""
        for total in keras.tree.flatten(getattr(self.optimizer, "totals", [])):
            total.assign(ops.zeros(total.shape, total.dtype))
        self.seed_generator.state.assign(self._seed)

    def call(self, inputs):
        y_pred = self.inner(inputs["x"], training=False)
        y, sample_weight = inputs.get("y"), inputs.get("sample_weight")
        if self.likelihood is not None:
            return self.likelihood(y_pred, y, sample_weight)
        loss = self.inner.compute_loss(
            x=inputs["x"], y=y, y_pred=y_pred, sample_weight=sample_weight
        )
        # What regularizes the weights says nothing of the examples.
        for variable in self.inner.trainable_variables:
            if variable.regularizer is not None:
                own = variable.regularizer(ops.convert_to_tensor(variable))
                loss = ops.subtract(loss, ops.cast(own, loss.dtype))
        return loss

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return y_pred


class _Products(keras.optimizers.Optimizer):
    """Adds up products of gradients, and leaves the weights as they are."""

    def __init__(self, products, wanted):
        super().__init__(learning_rate=1.0, name="products")
        self.products, self.wanted = products, wanted
        self.totals = []

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.totals = [
            [
                self.add_variable(each.shape, layout=layout_like(variable, each.shape))
                for each in self._products_like(variable)
            ]
            for variable in variables
        ]

    def _products_like(self, variable):
        if not self.wanted(variable):
            return []
        return self.products(keras.KerasTensor(variable.shape, "float32"))

    def update_step(self, gradient, variable, learning_rate):
        totals = self.totals[self._get_variable_index(variable)]
        if not totals:
            return
        # TensorFlow's may hold some rows alone.
        gradient = ops.reshape(ops.convert_to_tensor(gradient), variable.shape)
        products = self.products(ops.cast(gradient, "float32"))
        for total, product in zip(totals, products, strict=True):
            self.assign_add(total, product)
