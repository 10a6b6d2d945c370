"""The callback that resets model and optimizer before each task."""

import keras
import numpy as np


class FreshStart(keras.callbacks.Callback):
    """Resets model and optimizer to their initial values before each epoch.

    For a `fit()` in which an epoch is a task: every task is then learned by its own
    network, and all networks start from the same weights.

    Example:

    >>> import keras, keras_psp
    >>> from keras_psp.benchmarks import FreshStart
    >>> model = keras_psp.models.mlp((8,), num_classes=2, num_tasks=2, units=4)
    >>> model.compile("adam", "mse")
    >>> before = model.get_weights()[0]
    >>> x = {"image": keras.ops.ones((4, 8)), "task": keras.ops.array([0, 0, 1, 1])}
    >>> callbacks = [FreshStart()]
    >>> history = model.fit(x, keras.ops.ones((4, 2)), callbacks=callbacks, verbose=0)
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._variables = self.model.variables + optimizer.variables
        self._values = [
            np.array(keras.ops.convert_to_numpy(variable))
            for variable in self._variables
        ]

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
