"""Elastic weight consolidation."""

from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp._core.distribution import strategy_scope
from keras_psp.consolidation._fisher import LABELS
from keras_psp.consolidation._fisher import Fisher
from keras_psp.consolidation.consolidation import Consolidation


@keras.saving.register_keras_serializable(package="keras_psp")
class EWC(Consolidation):
    """Elastic weight consolidation: the Fisher information says what is important.

    ```
    strength / 2 * sum_i (sum_k decay^(K - k) F_ki) (w_i - w_Ki)^2
    ```

    over all earlier tasks k = 1 ... K. `F_k` is the diagonal of the task's Fisher
    information at its end, and `w_K` are the weights at the end of the last task.

    In the first paper every task has an anchor of its own, `sum_k F_ki (w_i - w_ki)^2`.
    `decay=None` does that. A sum of such parabolas is a parabola, so it also keeps one
    importance and one anchor for each weight. It pulls weights back to the first tasks
    that later tasks have moved with good reason, and forgets the later tasks (Huszár,
    2018).

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        decay: Number in [0, 1]. The importances of earlier tasks are multiplied by it
            when a task ends. `None` for an anchor for each task.
        examples: Positive integer, the most examples of a task that the Fisher
            information is measured on. If there are more, some are drawn.
        labels: `"model"` for the Fisher information proper: the model draws the labels
            itself. Each of its outputs must have a (binary, categorical or sparse
            categorical) crossentropy, the mean squared error, or no loss. `"data"` for
            the empirical Fisher information, with any loss, also with losses that the
            model adds itself.
        name: Name of the optimizer.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(keras_psp.consolidation.EWC("adam", strength=100.0), loss)
    >>> rng = keras.random.SeedGenerator(0)
    >>> for task in range(2):
    ...     x = keras.random.normal((64, 4), seed=rng)
    ...     y = keras.ops.argmax(keras.random.normal((64, 3), seed=rng), axis=1)
    ...     history = model.fit(x, y, verbose=0)
    ...     model.optimizer.end_task(model, (x, y))
    >>> len(model.optimizer.importances)
    2

    Reference:
        [Kirkpatrick et al., 2017](https://arxiv.org/abs/1612.00796), equation 3;
        one anchor: [Huszár, 2018](https://arxiv.org/abs/1712.03847); decay: [Schwarz et
        al., 2018](https://arxiv.org/abs/1805.06370), section 3.
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str" = "rmsprop",
        strength: float = 10.0,
        decay: float | None = 1.0,
        examples: int = 1024,
        labels: str = "model",
        name: str = "ewc",
    ) -> None:
        super().__init__(optimizer, strength, name)
        if decay is not None:
            decay = check_number("decay", decay, most=1.0)
        self.decay = decay
        self._fisher = Fisher(
            check_integer("examples", examples),
            check_name("labels", labels, LABELS),
            lambda gradient: [keras.ops.square(gradient)],
            self.protects,
        )

    def end_task(self, model: keras.Model, data: Any = None) -> None:
        """Measures the Fisher information of the task that has just been learned.

        Args:
            model: The model that was trained.
            data: The task's training data, in any form that `fit()` takes: batches
                `(x, y)` or `(x, y, sample_weight)`, as a `tf.data.Dataset`, a
                `PyDataset`, a list or a generator; or a tuple of arrays, or of lists
                or dictionaries of arrays. Of a dataset or a generator the first
                examples are taken: shuffle them. With `labels="model"` the targets
                matter only where the loss ignores a class.

        Raises:
            TypeError: `data` is in no such form.
            ValueError: Nothing has been trained yet, or not since the last task ended,
                or another model was; `data` is empty, has other shapes than the model,
                or gives gradients that are not finite; `labels="model"` and an output
                has another loss. Nothing has changed then.
        """
        self._check_trained(model)
        found = self._fisher(model, data)
        with strategy_scope(model):
            self._add(found)
        self._ended = self._count_steps()

    def _add(self, found):
        for i in self._protected:
            variable, (new,) = self._trainable_variables[i], found[i]
            anchor, importance = self.anchors[i], self.importances[i]
            value, old, where = (
                keras.ops.convert_to_numpy(v) for v in (variable, importance, anchor)
            )
            if self.decay is None:
                total = old + new
                share = np.divide(new, total, out=np.ones_like(new), where=total > 0)
                value = where + share * (value - where)
            else:
                total = self.decay * old + new
            importance.assign(total)
            anchor.assign(value)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "decay": self.decay,
            "examples": self._fisher.examples,
            "labels": self._fisher.labels,
        }
