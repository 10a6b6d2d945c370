"""Synaptic intelligence."""

import keras
from keras import ops

from keras_psp._core.checks import check_number
from keras_psp.consolidation.consolidation import Consolidation


@keras.saving.register_keras_serializable(package="keras_psp")
class SynapticIntelligence(Consolidation):
    """Synaptic intelligence: weights are important that have brought the loss down.

    While a task is learned, each weight's part in the fall of the loss is added up,
    `path_i = -sum_t g_i(t) (w_i(t + 1) - w_i(t))` with the gradient `g` of the loss
    alone. At the task's end

    ```
    importance_i += max(path_i, 0) / ((w_i - anchor_i)^2 + damping)
    ```

    and the anchor is where the task ended. The `strength` is twice the paper's c.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        damping: Positive number, for weights that hardly moved; the paper's xi.
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

    def __init__(self, optimizer="rmsprop", strength=10.0, damping=0.1, name="si"):
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
            self.paths[i].assign_add(gain)

    def end_task(self, model=None, data=None):
        """Makes the weights important that have learned the task.

        Args:
            model: The model that was trained; not looked at.
            data: Its data; not looked at.
        """
        for variable, anchor, importance, path in zip(
            self._trainable_variables,
            self.anchors,
            self.importances,
            self.paths,
            strict=True,
        ):
            moved = ops.square(ops.subtract(variable, anchor))
            gain = ops.maximum(path, 0.0) / ops.add(moved, self.damping)
            importance.assign_add(gain)
            path.assign(ops.zeros(path.shape, path.dtype))
            anchor.assign(ops.copy(variable.value))

    def get_config(self):
        return {**super().get_config(), "damping": self.damping}
