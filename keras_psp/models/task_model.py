"""A functional model that takes its `task` input at its word."""

import keras
import numpy as np

from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_shape
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import check_task_type
from keras_psp._core.task_index import is_soft


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskModel(keras.Model):
    """A functional `keras.Model` with an input named `"task"`.

    Keras casts what a functional model is given to the dtype of its `Input`, so that
    task 1.9 would become task 1 without a word. Here it is a `TypeError`, in a call as
    in `fit()`, `evaluate()` and `predict()`. And as one wrong index would train all
    tasks into NaN, `fit()` refuses arrays that hold one.

    Args:
        inputs: Dictionary of symbolic inputs; `"task"` of an integer dtype.
        outputs: Symbolic outputs.
        **kwargs: `keras.Model` arguments.

    Raises:
        ValueError: The layers hold different numbers of tasks.

    Example:

    >>> import keras, keras_psp
    >>> image = keras.Input((4,), name="image")
    >>> task = keras.Input((), dtype="int32", name="task")
    >>> logits = keras_psp.layers.PSPDense(2, num_tasks=3)(image, task)
    >>> inputs = {"image": image, "task": task}
    >>> model = keras_psp.models.TaskModel(inputs, logits)
    >>> image, task = keras.ops.ones((1, 4)), keras.ops.array([2])
    >>> model.predict({"image": image, "task": task}, verbose=0).shape
    (1, 2)
    """

    # Whether the kernels are the least squares solution of `superpose(..., data=)`: a
    # model that is added without data then disturbs them. It is saved with the weights.
    fitted_to_data = False

    # With the arguments of Keras' functional models, by which it knows them.
    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)
        numbers = {layer.name: layer.num_tasks for layer in self._task_layers()}
        if len(set(numbers.values())) > 1:
            raise ValueError(
                "All layers of a model must hold the same number of tasks. "
                f"Received: {numbers}"
            )

    @property
    def num_tasks(self):
        """How many tasks the model's layers hold."""
        layers = self._task_layers()
        if not layers:
            raise ValueError(f"No layer of {self.name!r} takes a task.")
        return min(layer.num_tasks for layer in layers)

    def add_tasks(self, n):
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        The model need not be compiled again, but if its contexts are learned the
        optimizer starts afresh: it has numbers of its own for each of theirs.

        Args:
            n: Positive integer.

        Returns:
            The model itself.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is not positive, a layer cannot hold so many tasks, or
                the model takes soft contexts, whose number is that of an input.
        """
        total = self.num_tasks + check_integer("n", n)
        self._check_can_change(n)
        self.check_can_hold(total)
        return self._change_to(total)

    def remove_tasks(self, n):
        """Removes the last `n` tasks; the others stay exactly as they are.

        It undoes `add_tasks()`: what the tasks have of their own goes, and what they
        have written into shared weights stays.

        Args:
            n: Positive integer, less than the number of tasks.

        Returns:
            The model itself.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is not positive, no task would be left, or the model takes
                soft contexts.
        """
        total = self.num_tasks - check_fewer_tasks(n, self.num_tasks)
        self._check_can_change(n)
        return self._change_to(total)

    def check_can_hold(self, num_tasks):
        """Raises a `ValueError` if a layer's context cannot hold `num_tasks`."""
        for layer in self._task_layers():
            layer.check_can_hold(num_tasks)

    def call(self, inputs, training=None, mask=None):
        self._check(inputs, check_task_type)
        return super().call(inputs, training=training, mask=mask)

    # What is wrong with the data is said here already: on JAX Keras hands the weights
    # over to the compiled step before it traces it, and loses them if that fails.

    def fit(self, x=None, *args, **kwargs):
        self._check(x, check_task)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        self._check(x, check_task_type)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        self._check(x, check_task_type)
        return super().predict(x, *args, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        before = [np.array(w) for w in self.get_weights()]
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except Exception:
            # Keras loads layer after layer, and may find only then that one of them
            # is of another family, or size.
            self.set_weights(before)
            raise

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.fitted_to_data:
            store["fitted_to_data"] = np.array(1)

    def load_own_variables(self, store):
        values = {name: store[name] for name in store.keys()}
        self.fitted_to_data = bool(values.pop("fitted_to_data", self.fitted_to_data))
        super().load_own_variables(values)

    def _check_can_change(self, n):
        if self._is_soft():
            raise ValueError(
                "A model that takes soft contexts has an input of `num_tasks` weights "
                f"and can neither grow nor shrink. Received: n={n}"
            )

    def _change_to(self, total):
        trained = [id(v) for v in self.trainable_variables]
        for layer in self._task_layers():  # Which may share a context.
            if layer.num_tasks < total:
                layer.add_tasks(total - layer.num_tasks)
            elif layer.num_tasks > total:
                layer.remove_tasks(n=layer.num_tasks - total)
        # What was compiled has the old weights, and number of tasks, in it.
        self.train_function = self.test_function = self.predict_function = None
        if self.compiled and trained != [id(v) for v in self.trainable_variables]:
            self.compile_from_config(self.get_compile_config())
        return self

    def _task_layers(self):
        return [layer for layer in self.layers if hasattr(layer, "num_tasks")]

    def _is_soft(self):
        return keras.backend.is_float_dtype(self.input["task"].dtype)

    def _check(self, x, check):
        """Calls `check` on the task in `x`; of a tf.data dataset its type is known."""
        if hasattr(x, "element_spec"):
            x, check = x.element_spec, check_task_type
            x = x[0] if isinstance(x, tuple) else x
        if not isinstance(x, dict):
            return
        for name in set(x) & set(self.input) - {"task"}:
            check_shape(name, x[name], self.input[name].shape)
        if "task" in x:
            task = check(x["task"], self.num_tasks)
            if is_soft(task) != self._is_soft():
                raise TypeError(
                    "This model takes "
                    + (
                        "soft contexts, floats of shape (batch, num_tasks), "
                        if self._is_soft()
                        else "one index for each example "
                    )
                    + f"as `task`. Received: task of dtype {task.dtype} and shape "
                    f"{tuple(task.shape)}"
                )
