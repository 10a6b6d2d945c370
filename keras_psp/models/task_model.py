"""A functional model with a `task` input, in which no task answers for another."""

import weakref
from typing import Any
from typing import Literal

import keras

from keras_psp._core import scope
from keras_psp._core.backend import is_readable
from keras_psp._core.data import InputCheck
from keras_psp._core.task import mask_outputs
from keras_psp._core.task_index import as_index
from keras_psp._core.task_index import check_task_type
from keras_psp.models._takes_tasks import TakesTasks


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskModel(TakesTasks, keras.Model):
    """A functional `keras.Model` with an input named `"task"`.

    No task answers for another one:

    - Keras casts what a functional model is given to the dtype of its `Input`. Task 1.9
      would become task 1, and task 2**32 task 0. Here a float is a `TypeError`, however
      the inputs are handed in.
    - `fit()` and `train_on_batch()` refuse a batch with an index outside
      `[0, num_tasks)` before it trains anything.
    - Elsewhere the outputs of an unknown task are NaN, whatever stands behind the
      layers: a softmax, an argument of the maximum, a threshold. Integer outputs are
      the lowest number of their dtype, or the highest if they have no sign.

    Layers inside blocks that know no task take it from the model's input, as in
    `keras_psp.task()`.

    What fails leaves the model as it was. If `fit()` is interrupted (`Ctrl-C`), the
    step that runs is finished first.

    Args:
        inputs: Dictionary of symbolic inputs; `"task"` of an integer dtype.
        outputs: Symbolic outputs, in any structure, of numbers.
        **kwargs: `keras.Model` arguments.

    Raises:
        ValueError: The layers hold different numbers of tasks; an output is of
            booleans or strings, which cannot say that a task is unknown.

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

    # With the arguments of Keras' functional models, by which it knows them.
    def __init__(
        self, inputs: Any, outputs: Any, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(inputs, outputs, name=name, **kwargs)
        if not isinstance(self.input, dict) or "task" not in self.input:
            raise ValueError(
                "`inputs` must be a dictionary with an input 'task'. "
                f"Received: inputs={inputs}"
            )
        numbers = {layer.name: layer.num_tasks for layer in self._task_layers()}
        if len(set(numbers.values())) > 1:
            raise ValueError(
                "All layers of a model must hold the same number of tasks. "
                f"Received: {numbers}"
            )
        for output in keras.tree.flatten(outputs):
            if output.dtype in ("bool", "string"):
                raise ValueError(
                    "The outputs must be numbers: others cannot say that a task is "
                    f"unknown. Received: {output.name!r} of dtype {output.dtype}"
                )
        # Models that have called this one: they have its variables compiled in.
        self._callers: weakref.WeakSet = weakref.WeakSet()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        task = self._task_in(inputs)
        if is_readable(task):
            inputs = self._check("raise")(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        self._note_caller()
        task = self._task_in(inputs)
        if not self._is_soft():
            task = as_index(task)
        check_task_type(task, self.num_tasks)
        with scope.task(task):
            outputs = super().call(inputs, training=training, mask=mask)
        if self._is_soft():
            return outputs
        return mask_outputs(outputs, task, self.num_tasks, self.removed_tasks)

    def _is_soft(self) -> bool:
        return keras.backend.is_float_dtype(self.input["task"].dtype)

    def _task_in(self, inputs: Any) -> Any:
        """Returns the task in what the model is called with, or `None`."""
        if isinstance(inputs, dict):
            return inputs.get("task")
        flat, names = keras.tree.flatten(inputs), list(self.input)
        return flat[names.index("task")] if len(flat) == len(names) else None

    def _check(self, unknown: Literal["raise", "mark"]) -> InputCheck:
        # Keras reads a list in the order of sorted names.
        by_position = list(self.input) == sorted(self.input)
        return InputCheck(
            self.input,
            self.num_tasks,
            unknown,
            by_position,
            task_names=self.task_names,
            removed=self.removed_tasks,
        )
