"""A functional model that takes its `task` input at its word."""

import keras

from keras_psp.contexts.task_index import check_task
from keras_psp.contexts.task_index import check_task_type


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

    @property
    def num_tasks(self):
        """How many tasks the model's superposed layers hold."""
        return min(
            layer.num_tasks for layer in self.layers if hasattr(layer, "num_tasks")
        )

    def call(self, inputs, training=None, mask=None):
        _check(inputs, check_task_type)
        return super().call(inputs, training=training, mask=mask)

    # What is wrong with the data is said here already: on JAX Keras hands the weights
    # over to the compiled step before it traces it, and loses them if that fails.

    def fit(self, x=None, *args, **kwargs):
        _check(x, lambda task: check_task(task, self.num_tasks))
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        _check(x, check_task_type)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        _check(x, check_task_type)
        return super().predict(x, *args, **kwargs)


def _check(x, check):
    """Calls `check` on the task in `x`, or on its type if `x` is a tf.data dataset."""
    if hasattr(x, "element_spec"):
        x, check = x.element_spec, check_task_type
        x = x[0] if isinstance(x, tuple) else x
    if isinstance(x, dict) and "task" in x:
        check(x["task"])
