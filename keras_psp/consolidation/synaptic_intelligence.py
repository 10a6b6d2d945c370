"""Synaptic intelligence."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_number
from keras_psp._core.distribution import strategy_scope
from keras_psp.consolidation.consolidation import Consolidation


@keras.saving.register_keras_serializable(package="keras_psp")
class SynapticIntelligence(Consolidation):
    """Synaptic intelligence: a weight is important if it has brought the loss down.

    While a task is learned, the optimizer adds up each weight's share in the fall of
    the loss, `path_i = -sum_t g_i(t) (w_i(t + 1) - w_i(t))`, where `g` is the gradient
    of the loss alone. When the task ends,

    ```
    importance_i += max(path_i, 0) / ((w_i - anchor_i)^2 + damping)
    ```

    and the weights become the anchors. With `gradient_accumulation_steps` the gradient
    is the mean over the accumulated batches. The `strength` is twice the paper's c.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        damping: Positive number, the paper's xi. It bounds the importance of weights
            that hardly moved.
        name: Name of the optimizer.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> si = keras_psp.consolidation.SynapticIntelligence("adam", strength=1.0)
    >>> model.compile(si, "mse")
    >>> rng = keras.random.SeedGenerator(0)
    >>> for task in range(2):
    ...     x = keras.random.normal((64, 4), seed=rng)
    ...     history = model.fit(x, x[:, :3], verbose=0)
    ...     model.optimizer.end_task(model)
    >>> bool(keras.ops.all(model.optimizer.importances[0] >= 0))
    True

    Reference:
        [Zenke et al., 2017](https://arxiv.org/abs/1703.04200), equations 3 to 5.
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str" = "rmsprop",
        strength: float = 10.0,
        damping: float = 0.1,
        name: str = "si",
    ) -> None:
        super().__init__(optimizer, strength, name)
        self.damping = check_number("damping", damping)
        if self.damping == 0:
            raise ValueError("`damping` must be positive. Received: damping=0")

    def add_own_variables(self, variables: list) -> None:
        """Adds the paths, the anchors and the importances."""
        self.paths = self._like(variables, "path")
        super().add_own_variables(variables)

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step, and adds what the loss has fallen by to the paths."""
        penalized = self._penalize(grads, variables)
        steps, _ = self.measure_step(grads, penalized, variables)
        for i, gradient, old in steps:
            gone = ops.subtract(old, self._trainable_variables[i])
            gain = ops.multiply(ops.cast(gradient, old.dtype), gone)
            self.assign_add(self.paths[i], gain)

    def end_task(self, model: keras.Model | None = None, data: Any = None) -> None:
        """Makes the weights important that have learned the task.

        Args:
            model: The model that was trained. It is only needed if the optimizer has
                been loaded from a file and has not trained since.
            data: Not used: the importances come from the steps.

        Raises:
            ValueError: Nothing has been trained yet, or not since the last task ended,
                or another model was; a path is not finite. Nothing has changed then.
        """
        if model is not None:
            self._check_trained(model)
        elif not self.built:
            raise ValueError("No task has been trained yet: nothing is important.")
        else:
            self._check_has_stepped()
        gains = {}
        for i in self._protected:
            moved = ops.square(self._apart(i))
            gains[i] = ops.maximum(self.paths[i], 0.0) / ops.add(moved, self.damping)
            if not np.isfinite(ops.convert_to_numpy(gains[i])).all():
                path = self._trainable_variables[i].path
                raise ValueError(
                    "The weights and their paths must be finite; nothing has been "
                    f"consolidated. Received: NaN or inf in those of {path!r}"
                )
        with strategy_scope(model):
            for i, gain in gains.items():
                path = self.paths[i]
                self.importances[i].assign_add(gain)
                path.assign(ops.zeros(path.shape, path.dtype))
                self.anchors[i].assign(ops.copy(self._trainable_variables[i].value))
        self._ended = self._count_steps()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "damping": self.damping}
