"""What every way of consolidating tasks is: an optimizer around another."""

import keras
from keras import ops

from keras_psp._core.checks import check_number


class Consolidation(keras.optimizers.Optimizer):
    """An optimizer that pulls weights back to where earlier tasks need them.

    It adds to the gradient of the loss that of the penalty

    ```
    strength / 2 * sum_i importance_i (w_i - anchor_i)^2
    ```

    over all trainable weights and lets another optimizer take the step. Its variables,
    anchors and importances among them, are those of any Keras optimizer: on every
    backend, under jit, in files and checkpoints. Subclasses say in `end_task()` what is
    important; where that is no number for each weight, they write `add_importances()`
    and `rise()` too, and how a step is taken.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        name: Name of the optimizer.

    Raises:
        TypeError: `strength` is not a number.
        ValueError: `strength` is negative, infinite or NaN; `optimizer` has a
            `loss_scale_factor`.
    """

    def __init__(self, optimizer="rmsprop", strength=1.0, name=None):
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = keras.optimizers.get(optimizer)
        if self.optimizer.loss_scale_factor is not None:
            # It would take the penalty for a part of the scaled loss.
            raise ValueError(
                "The optimizer must not scale the loss; use a `LossScaleOptimizer` "
                "around this one. Received: "
                f"loss_scale_factor={self.optimizer.loss_scale_factor}"
            )
        self.strength = check_number("strength", strength)

    def build(self, variables):
        """Makes the variables, for the trainable variables of a model."""
        if self.built:
            return
        if not self.optimizer.built:
            self.optimizer.build(variables)
        self.anchors = [
            # What the variable is now, however its optimizer comes to be built.
            self.add_variable_from_reference(
                v, "anchor", lambda shape, dtype, v=v: ops.copy(v.value)
            )
            for v in variables
        ]
        self.add_importances(variables)
        super().build(variables)

    def add_importances(self, variables):
        """Adds the variables that say how important the model's are: a number each."""
        self.importances = self._like(variables, "importance")

    @property
    def variables(self):
        """The other optimizer's variables follow this one's own."""
        return self._variables + self.optimizer.variables

    def apply(self, grads, trainable_variables=None):
        """Takes one step; `grads` are the gradients of the loss alone."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = list(trainable_variables or self._trainable_variables)
        self._step(list(grads), variables)

    def penalty(self):
        """Returns the penalty, a scalar, for the weights as they are."""
        terms = [self.rise(i) for i in range(len(self._trainable_variables))]
        return ops.multiply(self.strength / 2, ops.sum(ops.stack(terms)))

    def rise(self, i):
        """Returns twice what a variable adds to the penalty, but for the `strength`."""
        return ops.sum(ops.multiply(self.importances[i], ops.square(self._apart(i))))

    def end_task(self, model, data=None):
        """Makes what a task has learned important; call it when the task ends.

        Args:
            model: The model that was trained.
            data: The task's training data: batches `(inputs, targets)`, as a
                `tf.data.Dataset` or anything else to iterate over; or a tuple of two
                arrays.
        """
        raise NotImplementedError

    def _step(self, grads, variables):
        self.optimizer.apply(self._penalize(grads, variables), variables)

    def _penalize(self, grads, variables):
        """The gradients of loss and penalty."""
        penalized = []
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None:
                i = self._get_variable_index(variable)
                pull = ops.multiply(self.strength * self.importances[i], self._apart(i))
                gradient = ops.add(gradient, ops.cast(pull, gradient.dtype))
            penalized.append(gradient)
        return penalized

    def _apart(self, i):
        return ops.subtract(self._trainable_variables[i], self.anchors[i])

    def _check_trained(self, model):
        """Raises a `ValueError` if this is not the optimizer that trained a model."""
        if not self.built:
            raise ValueError(
                "No task has been trained yet: there is nothing to consolidate. Of a "
                "model that was trained elsewhere, build the optimizer first, with "
                "`optimizer.build(model.trainable_variables)`."
            )
        trained = [id(v) for v in self._trainable_variables]
        if [id(v) for v in model.trainable_variables] != trained:
            raise ValueError(
                "The model must be the one that this optimizer has trained, with the "
                f"same trainable variables. Received: {model.name!r}, with "
                f"{len(model.trainable_variables)} variables, where it has trained "
                f"{len(trained)}"
            )

    def _like(self, variables, name):
        return [self.add_variable_from_reference(v, name) for v in variables]

    def load_own_variables(self, store):
        """Takes the variables of a file; raises if they are another model's."""
        shapes = [tuple(variable.shape) for variable in self.variables]
        found = [tuple(store[str(i)].shape) for i in range(len(store.keys()))]
        if found != shapes:
            # Keras would leave them as they are, with a warning.
            raise ValueError(
                f"These are not the variables of {self.name!r} for this model: it has "
                f"{len(shapes)}. Received: {len(found)}"
                + ("" if len(found) != len(shapes) else ", of other shapes")
            )
        super().load_own_variables(store)

    # What Keras' own optimizer around another, LossScaleOptimizer, hands through.

    @property
    def learning_rate(self):
        """The other optimizer's."""
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        """The other optimizer's."""
        return self.optimizer.iterations

    def finalize_variable_values(self, var_list):
        self.optimizer.finalize_variable_values(var_list)

    def get_config(self):
        # Keras' own arguments are the other optimizer's to have.
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "strength": self.strength,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        optimizer = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "optimizer": optimizer})
