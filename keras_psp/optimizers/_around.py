"""The base of all optimizers around another one: `PerTask` and consolidations."""

from typing import Any
from typing import Self

import keras
import numpy as np
from keras import ops

from keras_psp._core import private
from keras_psp._core.backend import outside_functions
from keras_psp._core.distribution import assign_in_replicas
from keras_psp._core.distribution import count_replicas
from keras_psp._core.distribution import sum_gradients


class Around(keras.optimizers.Optimizer):
    """An optimizer that lets another one take the steps.

    Its variables are its own, followed by those of the other. Learning rate,
    iterations and the scale of the loss are the other's. Either may be, or stand
    inside, a `keras.optimizers.LossScaleOptimizer`.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        name: Name of the optimizer.
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str",
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = keras.optimizers.get(optimizer)
        if self.optimizer is None:  # What Keras makes of `None`.
            raise TypeError(
                "`optimizer` must be a Keras optimizer, or its name. "
                "Received: optimizer=None"
            )
        self._loaded: Any = None

    def build(self, variables: list) -> None:
        """Makes the variables, for the trainable variables of a model."""
        if self.built:
            return
        with outside_functions():
            if not self.optimizer.built:
                self.optimizer.build(variables)
            self.add_own_variables(variables)
            super().build(variables)
            private.show_averages(self, chain_of(self)[-1])
            if self._loaded is not None:
                self._assign(self._loaded)
                self._loaded = None

    def add_own_variables(self, variables: list) -> None:
        """Adds what this optimizer keeps beside what the other one does."""

    @property
    def variables(self) -> list:
        """The other optimizer's variables follow this one's own."""
        return self._variables + self.optimizer.variables

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Takes one step; `grads` are the gradients of the loss."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = list(trainable_variables or self._trainable_variables)
        self.take_step(sum_gradients(list(grads)), variables)

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step. Subclasses do what they are for before or after it."""
        self.step_other(grads, variables)

    def step_other(self, grads: list, variables: list) -> None:
        """Lets the other optimizer take its step."""
        replicas = count_replicas()
        if replicas > 1:  # The other optimizer sums up too.
            grads = [g if g is None else ops.divide(g, replicas) for g in grads]
        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if not (scales and keras.backend.backend() == "jax"):
            self.optimizer.apply(grads, variables)
            return
        # It decides by a condition whether to step. On JAX no variable can be assigned
        # to inside of a condition; its stateless step takes and returns values.
        found = {id(v): g for v, g in zip(variables, grads, strict=True)}
        weights, state = self._trainable_variables, self.optimizer.variables
        new = self.optimizer.stateless_apply(
            [ops.convert_to_tensor(v) for v in state],
            [found.get(id(v)) for v in weights],
            [ops.convert_to_tensor(v) for v in weights],
        )
        for group, values in zip((weights, state), new, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)

    def assign(self, variable: Any, value: Any) -> None:
        """Assigns to a variable in a step; in every replica that takes it."""
        if not assign_in_replicas(variable, value):
            super().assign(variable, value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Adds to a variable in a step; in every replica that takes it."""
        self.assign(variable, ops.add(variable, ops.cast(value, variable.dtype)))

    def carry_over(self, old: dict[str, Any], origins: list, rows: list) -> None:
        """Takes over what is no variable of a weight's shape; see `grow_optimizer()`.

        Args:
            old: This optimizer's attributes before it was built again.
            origins: For each weight the index that it had before, and whether the
                variable was replaced by one with other rows.
            rows: For each row of such a variable the row that it was, or `None`.
        """

    # What Keras' own optimizer around another, LossScaleOptimizer, hands through.

    @property
    def learning_rate(self) -> Any:
        """The other optimizer's."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The other optimizer's."""
        return self.optimizer.iterations

    def scale_loss(self, loss: Any) -> Any:
        """Returns the loss as the other optimizer wants it scaled."""
        return self.optimizer.scale_loss(loss)

    @property
    def loss_scale_factor(self) -> float | None:
        """The other optimizer's."""
        return self.optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if "optimizer" not in vars(self):
            return  # Keras sets `None` when it begins to make the optimizer.
        # A LossScaleOptimizer around this one sets `None`: it is the one that scales.
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            self.optimizer = self.optimizer.inner_optimizer
        self.optimizer.loss_scale_factor = factor

    def exclude_from_weight_decay(
        self, var_list: list | None = None, var_names: list[str] | None = None
    ) -> None:
        """Excludes weights from the other optimizer's weight decay."""
        self.optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: list) -> None:
        """Lets the other optimizer set the weights' final values."""
        self.optimizer.finalize_variable_values(var_list)
        if chain_of(self)[-1].use_ema and keras.backend.backend() == "jax":
            # Weight and average are one buffer now, which the next step of `fit()`
            # could not hand over twice.
            for variable in var_list:
                variable.assign(ops.copy(variable.value))

    # Files. Keras passes over a file's optimizer that is not built yet; a training that
    # goes on from such a file would begin with nothing.

    def __dir__(self) -> list[str]:
        # Keras saves what it finds here. The other optimizer's variables are in the
        # file already, and it could not take its own before it is built.
        return [name for name in super().__dir__() if name != "optimizer"]

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables, or what a file has held for them."""
        if self._loaded is None:
            super().save_own_variables(store)
            return
        for i, array in enumerate(self._loaded):
            store[str(i)] = array

    def load_own_variables(self, store: Any) -> None:
        """Takes the variables of a file, now or when the optimizer is built.

        Raises:
            ValueError: They are another model's; nothing changes then.
        """
        arrays = [np.array(store[str(i)]) for i in range(len(store.keys()))]
        if self.built:
            self._assign(arrays)
        elif arrays:
            self._loaded = arrays

    def _assign(self, arrays: list) -> None:
        shapes = [tuple(variable.shape) for variable in self.variables]
        found = [array.shape for array in arrays]
        if found != shapes:
            # Keras would leave them as they are, with a warning.
            raise ValueError(
                f"These are not the variables of {self.name!r} for this model: it has "
                f"{len(shapes)}. Received: {len(found)}"
                + ("" if len(found) != len(shapes) else ", of other shapes")
            )
        for variable, array in zip(self.variables, arrays, strict=True):
            variable.assign(array)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments. Keras' own are the other optimizer's to have."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Returns the optimizer of what `get_config()` returned."""
        optimizer = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "optimizer": optimizer})


def chain_of(optimizer: Any) -> list:
    """Returns an optimizer and those inside it, from the outermost inwards."""
    chain = [optimizer]
    while True:
        last = chain[-1]
        inner = getattr(last, "optimizer", None) or getattr(
            last, "inner_optimizer", None
        )
        if inner is None:
            return chain
        chain.append(inner)


def find_in_chain(optimizer: Any, wanted: Any) -> Any:
    """Returns the outermost optimizer of a chain for which `wanted` is true, or `None`.

    Args:
        optimizer: The outermost optimizer, or `None`.
        wanted: Function of an optimizer.
    """
    chain = [] if optimizer is None else chain_of(optimizer)
    return next((each for each in chain if wanted(each)), None)
