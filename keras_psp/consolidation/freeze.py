"""Freezes what tasks share after the first task: a control for consolidations."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.distribution import strategy_scope
from keras_psp._core.private import moving_averages
from keras_psp._core.private import trained_variables
from keras_psp.consolidation.consolidation import Consolidation
from keras_psp.optimizers._around import chain_of


@keras.saving.register_keras_serializable(package="keras_psp")
class Freeze(Consolidation):
    """Freezes the weights that tasks share when the first task ends.

    Later tasks train only what is their own: parts of low rank, heads, biases. Nothing
    is forgotten, and nothing that tasks could share is learned after the first. Beside
    a method that keeps learning, this says how much of its accuracy comes from the
    weights that each task has of its own.

    Args:
        optimizer: A `keras_psp.optimizers.PerTask` around the
            `keras.optimizers.Optimizer` that takes the steps.
        name: Name of the optimizer.

    Raises:
        ValueError: There is no such optimizer, or it has no `PerTask` in it.

    Example:

    >>> import keras, keras_psp
    >>> model = keras_psp.models.mlp((4,), 3, num_tasks=2, units=8, rank=1)
    >>> adam = keras_psp.optimizers.PerTask("adam")
    >>> model.compile(keras_psp.consolidation.Freeze(adam), "mse")
    >>> x = {"image": keras.ops.ones((8, 4)), "task": keras.ops.zeros(8, "int32")}
    >>> history = model.fit(x, keras.ops.ones((8, 3)), verbose=0)
    >>> model.optimizer.end_task(model)
    >>> before = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    >>> history = model.fit(x, keras.ops.zeros((8, 3)), verbose=0)
    >>> bool((before == keras.ops.convert_to_numpy(model.layers[-1].kernel)).all())
    True
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        name: str = "freeze",
    ) -> None:
        super().__init__(optimizer, name=name)
        if self._per_task is None:
            raise ValueError(
                "`Freeze` trains what each task has of its own, around a "
                f"`keras_psp.optimizers.PerTask`. Received: optimizer={optimizer!r}"
            )

    def add_own_variables(self, variables: list) -> None:
        """Adds whether a task has ended."""
        self.frozen = self.add_variable((), dtype="bool", name="frozen")

    def rise(self, i: int) -> Any:
        """Returns 0: what stands still has no penalty."""
        return ops.convert_to_tensor(0.0)

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step, and puts back what tasks share if one has ended.

        Of its average too, by which `use_ema=True` replaces it when `fit()` ends.
        """
        shared = [variable for variable in variables if self.protects(variable)]
        olds = [ops.copy(variable.value) for variable in shared]
        frozen = ops.convert_to_tensor(self.frozen)
        self.step_other(grads, variables)
        averages = moving_averages(chain_of(self)[-1]) or ()
        trained = map(id, trained_variables(self))
        of_variable = dict(zip(trained, averages, strict=False))
        for variable, old in zip(shared, olds, strict=True):
            for each in (variable, of_variable.get(id(variable))):
                if each is not None:
                    self.assign(each, ops.where(frozen, old, each.value))

    def end_task(self, model: keras.Model, data: Any = None) -> None:
        """Freezes what tasks share.

        Args:
            model: The model that was trained.
            data: Not used.

        Raises:
            ValueError: Nothing has been trained yet, or not since the last task ended,
                or another model was.
        """
        self._check_trained(model)
        with strategy_scope(model):
            self.frozen.assign(True)
        self._ended = self._count_steps()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["strength"]
        return config
