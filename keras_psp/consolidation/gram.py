"""Consolidation by the Gram matrices of gradients."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp._core.distribution import strategy_scope
from keras_psp.consolidation._factor import Factor
from keras_psp.consolidation._fisher import LABELS
from keras_psp.consolidation._fisher import Fisher
from keras_psp.consolidation.consolidation import Consolidation


@keras.saving.register_keras_serializable(package="keras_psp")
class Gram(Consolidation):
    """Keeps the answers of earlier tasks, by two matrices for each kernel.

    ```
    strength / 2 * tr((W - W*)^T L (W - W*) R)
    L = sum_k E[g g^T] / t_k,   R = t mean_k E[g^T g] / t_k,   t_k = E|g|^2
    ```

    `g` is the gradient of one example's log-likelihood with respect to the kernel, a
    matrix with a row for each input. The means are taken over examples of task k when
    the task ends. `W*` is the kernel at the end of the last task. `L` says which of the
    kernel's inputs the tasks use, and which together. `R` says which of its outputs
    matter for the answers. Together they are a Kronecker-factored Fisher information,
    of which `EWC` has the diagonal. To second order the penalty is how much the losses
    of the earlier tasks rise; with a `strength` of 1 it is their sum.

    All tasks count alike; `t` is the harmonic mean of the `t_k`. Otherwise a task that
    the model is sure of, whose gradients are small, would be forgotten, and a badly
    learned task would keep the next one from being learned.

    In a superposed layer the gradients are bound to the tasks' contexts, as the inputs
    are. One pair of matrices therefore holds for all tasks.

    A weight of any shape is taken as a matrix whose columns are its last dimension. The
    kernel of a convolution has the numbers of a patch as inputs, a bias has one input.
    A side of more than `largest` numbers has only the diagonal of its matrix.

    The other optimizer takes its steps by the loss alone. After each `every`-th step
    the kernels are pulled back to where loss and penalty hold the balance,

    ```
    W <- W* + (I + c strength L (x) R)^-1 (W - W*)
    ```

    where `c` is the sum of the step sizes since the last time: how far the optimizer
    has gone, divided by the sizes of the gradients. This is the implicit step of
    gradient descent. It is stable however strong the penalty is, and leaves alone what
    the optimizer knows of the loss. In the coordinates of the eigenvectors it is a
    division.

    Args:
        optimizer: The `keras.optimizers.Optimizer` that takes the steps, or its name.
        strength: Number, at least 0: how much the penalty weighs beside the loss.
        decay: Number in [0, 1]. The matrices of earlier tasks are multiplied by it when
            a task ends.
        examples: Positive integer, the most examples of a task that the matrices are
            measured on. If there are more, some are drawn.
        labels: `"model"` for the Fisher information proper: the model draws the labels
            itself. Each of its outputs must have a (binary, categorical or sparse
            categorical) crossentropy, the mean squared error, or no loss. `"data"` for
            the empirical Fisher information, with any loss, also with losses that the
            model adds itself.
        temperature: Positive number by which the logits are divided, with
            `labels="model"` and a crossentropy. With 1 hardly any examples count except
            those that the model is not sure of; with more, all do.
        every: Positive integer, the number of steps after which kernels are pulled
            back.
        largest: Positive integer, the most inputs or outputs that have a matrix.
        name: Name of the optimizer.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> from keras_psp import consolidation
    >>> model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=2, units=8, depth=1)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(consolidation.Gram("adam"), loss)
    >>> rng = keras.random.SeedGenerator(0)
    >>> for task in range(2):
    ...     image = keras.random.normal((64, 4), seed=rng)
    ...     x = {"image": image, "task": keras.ops.full((64,), task, "int32")}
    ...     y = keras.ops.argmax(image[:, :3], axis=1)
    ...     history = model.fit(x, y, verbose=0)
    ...     model.optimizer.end_task(model, (x, y))
    >>> float(keras.ops.convert_to_numpy(model.optimizer.penalty()))
    0.0

    Reference:
        [Ritter et al., 2018](https://arxiv.org/abs/1805.07810), equation 8, in the
        coordinates of [Cheung et al., 2019](https://arxiv.org/abs/1902.05522); the
        factors: [Gupta et al., 2018](https://arxiv.org/abs/1802.09568), algorithm 1.
    """

    def __init__(
        self,
        optimizer: "keras.optimizers.Optimizer | str" = "rmsprop",
        strength: float = 0.5,
        decay: float = 1.0,
        examples: int = 1024,
        labels: str = "model",
        temperature: float = 4.0,
        every: int = 50,
        largest: int = 3000,
        name: str = "gram",
    ) -> None:
        super().__init__(optimizer, strength, name)
        self.decay = check_number("decay", decay, most=1.0)
        self.every = check_integer("every", every)
        self.largest = check_integer("largest", largest)
        self._fisher = Fisher(
            check_integer("examples", examples),
            check_name("labels", labels, LABELS),
            self._products,
            self.protects,
            check_number("temperature", temperature, least=1e-3),
        )

    def add_importances(self, variables: list) -> None:
        """Adds two matrices for each variable, and what measures the step sizes."""
        self.factors: list[Any] = []
        self.paths: list[Any] = []
        for variable in variables:
            if not self.protects(variable):
                self.factors.append(None)
                self.paths.append(None)
                continue
            shape = _rows(keras.KerasTensor(variable.shape)).shape
            self.factors.append(
                [Factor(self, variable, size, self.largest) for size in shape]
            )
            # How far the variable has gone, and how large the gradients were.
            self.paths.append(self.add_variable((2,), name="path"))
        self.count = self.add_variable((), name="count")

    def rise(self, i: int) -> Any:
        """Returns `tr((W - W*)^T L (W - W*) R)`; see `Consolidation.rise()`."""
        left, right = self.factors[i]
        weights = ops.multiply(left.values[:, None], right.values)
        return ops.sum(ops.multiply(weights, ops.square(self._coordinates(i))))

    def end_task(self, model: keras.Model, data: Any = None) -> None:
        """Measures the matrices of the task that has just been learned.

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
        state = [*self._trainable_variables, *self._measured_steps]
        before = [ops.convert_to_numpy(variable).copy() for variable in state]
        with strategy_scope(model):
            self._pull_back(ops.convert_to_tensor(True))  # For the last steps.
        try:
            found = self._fisher(model, data)
        except BaseException:
            with strategy_scope(model):
                for variable, value in zip(state, before, strict=True):
                    variable.assign(value)
            raise
        with strategy_scope(model):
            for i in self._protected:
                new_left, new_right = found[i]
                size = _trace(new_left)
                if size > 0:
                    left, right = self.factors[i]
                    self._add(left, right, new_left / size, new_right / size, size)
                self.anchors[i].assign(ops.copy(self._trainable_variables[i].value))
        self._ended = self._count_steps()

    def _add(self, left, right, new_left, new_right, new_size):
        """Adds a task's two matrices of trace 1, and the size of its gradients."""
        old_left, old_right = self.decay * left.get(), right.get()
        before = _trace(old_left)  # How many tasks there have been.
        left.set(old_left + new_left)
        if before == 0:
            right.set(new_size * new_right)
            return
        old_size, share = _trace(old_right), 1 / (before + 1)
        mean = (1 - share) * old_right / old_size + share * new_right
        right.set(mean / ((1 - share) / old_size + share / new_size))

    def take_step(self, grads: list, variables: list) -> None:
        """Takes one step by the loss alone, and pulls back after each `every`-th."""
        steps, stepped = self.measure_step(grads, grads, variables)
        for i, gradient, old in steps:
            gone = _norm(ops.subtract(self._trainable_variables[i], old))
            self.assign_add(self.paths[i], ops.stack([gone, _norm(gradient)]))
        self.assign_add(self.count, ops.cast(stepped, self.count.dtype))
        self._pull_back(ops.greater_equal(self.count, self.every))

    def _pull_back(self, due):
        protected = self._protected
        variables = [self._trainable_variables[i] for i in protected]
        values = ops.cond(
            due,
            lambda: [self._balance(i) for i in protected],
            lambda: [ops.convert_to_tensor(v) for v in variables],
        )
        for variable, value in zip(variables, values, strict=True):
            self.assign(variable, value)
        for variable in self._measured_steps:
            self.assign(variable, ops.where(due, 0.0, variable.value))

    @property
    def _measured_steps(self):
        """What was measured of the steps since the kernels were pulled back."""
        return [*(path for path in self.paths if path is not None), self.count]

    def _balance(self, i):
        """Where a variable is pulled back to."""
        left, right = self.factors[i]
        moved, gradients = self.paths[i][0], self.paths[i][1]
        # The sum of the step sizes: none where no gradient has been.
        size = ops.multiply(self.count, ops.divide_no_nan(moved, gradients))
        weights = ops.multiply(left.values[:, None], right.values)
        weights = ops.multiply(ops.multiply(self.strength, size), weights)
        # What is taken away, so that what does not matter stays exactly as it is.
        share = ops.divide(weights, ops.add(1.0, weights))
        rows = left.out_of(ops.multiply(share, self._coordinates(i)))
        rows = ops.transpose(right.out_of(ops.transpose(rows)))
        variable = self._trainable_variables[i]
        rows = ops.cast(ops.reshape(rows, variable.shape), variable.dtype)
        return ops.subtract(variable, rows)

    def carry_over(self, old: dict[str, Any], origins: list, rows: list) -> None:
        """Takes over the matrices; rows of new tasks matter to none; see `Around`."""
        for i, (before, replaced) in enumerate(origins):
            if self.paths[i] is not None:  # Two numbers, no rows of two tasks.
                self.paths[i].assign(old["paths"][before])
            for side, factor in enumerate(self.factors[i] or ()):
                kept = old["factors"][before][side]
                if replaced and side == 0:
                    size = factor.values.shape[0]
                    factor.set(_change_rows(kept.get(), size, rows))
                else:
                    factor.copy(kept)

    def _coordinates(self, i):
        """How far a variable is from its anchor, along the eigenvectors."""
        left, right = self.factors[i]
        rows = left.into(_rows(ops.cast(self._apart(i), "float32")))
        return ops.transpose(right.into(ops.transpose(rows)))

    def _products(self, gradient):
        rows = _rows(gradient)
        # E[g g^T] and E[g^T g], or their diagonals.
        return [
            ops.sum(ops.square(each), axis=1)
            if each.shape[0] > self.largest
            else ops.matmul(each, ops.transpose(each))
            for each in (rows, ops.transpose(rows))
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "decay": self.decay,
            "examples": self._fisher.examples,
            "labels": self._fisher.labels,
            "temperature": self._fisher.temperature,
            "every": self.every,
            "largest": self.largest,
        }


def _rows(variable):
    """A weight as a matrix: a row for each input, a column for each output."""
    shape = tuple(variable.shape) or (1,)
    return ops.reshape(variable, (math.prod(shape[:-1]), shape[-1]))


def _change_rows(matrix, size, rows):
    """A matrix of a row and column for each input of each task, with other tasks.

    Args:
        matrix: Array of shape `(num_tasks * n, num_tasks * n)`, or its diagonal.
        size: Integer, how many rows it is to have.
        rows: For each new task the index that it had, or `None`.
    """
    n = size // len(rows)
    kept = [(new, old) for new, old in enumerate(rows) if old is not None]
    to = np.concatenate([np.arange(n) + n * new for new, _ in kept])
    of = np.concatenate([np.arange(n) + n * old for _, old in kept])
    changed = np.zeros((size,) * matrix.ndim)
    changed[np.ix_(*[to] * matrix.ndim)] = matrix[np.ix_(*[of] * matrix.ndim)]
    return changed


def _norm(tensor):
    return ops.sqrt(ops.sum(ops.square(ops.cast(tensor, "float32"))))


def _trace(matrix):
    return matrix.sum() if matrix.ndim == 1 else matrix.trace()
