"""The base of all consolidations: an optimizer around another one."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_number
from keras_psp._core.initial import Initial
from keras_psp._core.task_rows import is_task_rows
from keras_psp.optimizers._around import Around
from keras_psp.optimizers._around import chain_of
from keras_psp.optimizers._around import find_in_chain
from keras_psp.optimizers.per_task import PerTask


class Consolidation(Around):
    """An optimizer that pulls weights back to where earlier tasks need them.

    It adds the gradient of the penalty

    ```
    strength / 2 * sum_i importance_i (w_i - anchor_i)^2
    ```

    over all trainable weights to the gradient of the loss, and lets another optimizer
    take the step. Anchors and importances are variables of a Keras optimizer: they work
    on every backend, under jit, and are saved in files and checkpoints. Subclasses say
    in `end_task()` what is important. A subclass that needs more than one number for
    each weight also writes `add_importances()`, `rise()` and `take_step()`.

    Around a `keras_psp.optimizers.PerTask` it leaves alone what each task has of its
    own, such as parts of low rank and heads: no other task moves these weights.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        name: Name of the optimizer.

    Raises:
        TypeError: `strength` is not a number.
        ValueError: `strength` is negative, infinite or NaN.
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str" = "rmsprop",
        strength: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(optimizer, name)
        self.strength = check_number("strength", strength)
        self._ended = 0  # After how many steps the last task has.

    def add_own_variables(self, variables: list) -> None:
        """Adds the anchors, where the weights are now, and the importances."""
        self.anchors = [
            self.add_variable_from_reference(v, "anchor", _value_of(v))
            if self.protects(v)
            else None
            for v in variables
        ]
        self.add_importances(variables)
        self.sums: Any = None
        if chain_of(self)[-1].gradient_accumulation_steps:
            self.sums = self._like(variables, "sum")

    def add_importances(self, variables: list) -> None:
        """Adds the variables that say how important the model's are: a number each.

        `None` for weights that `protects()` leaves out.
        """
        self.importances = self._like(variables, "importance")

    def protects(self, variable: Any) -> bool:
        """Whether tasks share a weight, so that later ones may spoil it."""
        return not is_task_rows(variable) or self._per_task is None

    def penalty(self) -> Any:
        """Returns the penalty, a scalar, for the weights as they are."""
        terms = [self.rise(i) for i in self._protected]
        total = ops.sum(ops.stack(terms)) if terms else ops.convert_to_tensor(0.0)
        return ops.multiply(self.strength / 2, total)

    def rise(self, i: int) -> Any:
        """Returns twice what a variable adds to the penalty, but for the `strength`."""
        return ops.sum(ops.multiply(self.importances[i], ops.square(self._apart(i))))

    def end_task(self, model: keras.Model, data: Any = None) -> None:
        """Makes what a task has learned important; call it when the task ends.

        Args:
            model: The model that was trained.
            data: The task's training data, in any form that `fit()` takes as batches
                or as arrays: `(x, y)` or `(x, y, sample_weight)`.
        """
        raise NotImplementedError

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step by the gradients of loss and penalty."""
        self.step_other(self._penalize(grads, variables), variables)

    def measure_step(
        self, grads: list, step_grads: list, variables: list
    ) -> tuple[list[tuple[int, Any, Any]], Any]:
        """Lets the other optimizer step, and returns what the step was.

        Args:
            grads: Gradients of the loss; `None` for some.
            step_grads: What the other optimizer is given.
            variables: The variables.

        Returns:
            `(steps, stepped)`. `steps` has `(index, gradient, old value)` for each
            variable that is protected: the gradient of the loss that the step was taken
            by. Over accumulated batches it is their mean, and zero until there are
            enough of them. `stepped` is whether there was a step, a boolean (tensor).
        """
        olds = [ops.copy(v.value) if self.protects(v) else None for v in variables]
        scale = self.scale_loss(1.0)
        count = chain_of(self)[-1].gradient_accumulation_steps
        scales = find_in_chain(self.optimizer, _is_loss_scale)
        before = ops.copy(ops.convert_to_tensor(self.iterations))
        self.step_other(step_grads, variables)
        stepped = True
        if count or scales:  # Which leaves out a step if a gradient is not finite.
            stepped = ops.not_equal(before, self.iterations)
        steps = []
        for gradient, variable, old in zip(grads, variables, olds, strict=True):
            if gradient is None or old is None:
                continue
            i = self._get_variable_index(variable)
            gradient = ops.convert_to_tensor(gradient)
            if not isinstance(scale, float) or scale != 1:
                gradient = ops.divide(gradient, ops.cast(scale, gradient.dtype))
            if scales:
                gradient = ops.where(ops.isfinite(gradient), gradient, 0.0)
            if count:
                total = ops.add(self.sums[i], ops.cast(gradient, self.sums[i].dtype))
                self.assign(self.sums[i], ops.where(stepped, 0.0, total))
                gradient = ops.divide(total, count)
            if stepped is not True:
                gradient = ops.where(stepped, gradient, 0.0)
            steps.append((i, gradient, old))
        return steps, stepped

    def _penalize(self, grads, variables):
        """The gradients of loss and penalty."""
        penalized = []
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None and self.protects(variable):
                i = self._get_variable_index(variable)
                pull = ops.multiply(self.strength * self.importances[i], self._apart(i))
                # The gradient is that of the scaled loss.
                pull = ops.cast(self.scale_loss(pull), gradient.dtype)
                gradient = ops.add(gradient, pull)
            penalized.append(gradient)
        return penalized

    @property
    def _protected(self):
        """The indices of the protected weights."""
        return [i for i, v in enumerate(self._trainable_variables) if self.protects(v)]

    @property
    def _per_task(self):
        return find_in_chain(self.optimizer, lambda each: isinstance(each, PerTask))

    def _apart(self, i):
        return ops.subtract(self._trainable_variables[i], self.anchors[i])

    def _check_trained(self, model):
        """Raises a `ValueError` if this is not the optimizer that trained a model."""
        if self._loaded is not None:  # From a file.
            self.build(model.trainable_variables)
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
        self._check_has_stepped()

    def _check_has_stepped(self):
        """Raises a `ValueError` if no step was taken since a task has ended."""
        # Of a model that was trained elsewhere, tasks end without a step.
        if self._ended and self._ended == self._count_steps():
            raise ValueError(
                "`end_task()` must be called once for each task, after it was trained. "
                "Received: no step since the last task ended"
            )

    def _count_steps(self):
        # Of a variable that TensorFlow's replicas share, `int()` makes nothing.
        return int(ops.convert_to_numpy(ops.convert_to_tensor(self.iterations)))

    def _like(self, variables, name):
        return [
            self.add_variable_from_reference(v, name) if self.protects(v) else None
            for v in variables
        ]

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables, and when the last task has ended."""
        super().save_own_variables(store)
        store["ended"] = np.array(self._ended)

    def load_own_variables(self, store: Any) -> None:
        """Takes what a file holds; see `Around`. Earlier releases left `ended` out."""
        values = {name: store[name] for name in store.keys()}
        ended = int(np.array(values.pop("ended", 0)))
        super().load_own_variables(values)
        self._ended = ended

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, by their names."""
        return {**super().get_config(), "strength": self.strength}


def _value_of(variable):
    """What the variable is now, however its optimizer comes to be built."""
    return Initial(lambda shape, dtype: ops.copy(variable.value))


def _is_loss_scale(optimizer):
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
