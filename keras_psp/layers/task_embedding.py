"""An embedding with a table for each task."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.task import Task
from keras_psp.layers._task_rows import TaskRows


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskEmbedding(TaskRows, keras.layers.Embedding):
    """One `keras.layers.Embedding` for each task, in one layer: nothing is superposed.

    ```
    y = table_k[x]
    ```

    A batch of several tasks is looked up at once. All tasks' tables start alike. Train
    them with `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also moves
    the tables of tasks without an example in the batch.

    Args:
        input_dim: Positive integer, the size of the vocabulary.
        output_dim: Positive integer, the size of the vectors.
        num_tasks: Positive integer, the number of tasks.
        weights: Array of shape `(input_dim, output_dim)` that all tasks begin with, or
            `(num_tasks, input_dim, output_dim)`. Or `None`.
        **kwargs: `keras.layers.Embedding` arguments. Regularizers and constraints see
            one task's table at a time. There is no LoRA and no quantization.

    Call arguments:
        inputs: Integer tensor, numbers in `[0, input_dim)`. Others give what Keras' own
            layer gives on the backend, and never a row of another task.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, ...)`.

    Output shape:
        `(batch, ..., output_dim)`, with a mask if `mask_zero` is true. Examples whose
        index lies outside `[0, num_tasks)` raise a `ValueError` where the index can be
        read and are NaN in a compiled or exported graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskEmbedding(100, 4, num_tasks=10)
    >>> tuple(layer(keras.ops.array([[1, 2], [3, 4], [5, 6]]), [0, 7, 7]).shape)
    (3, 2, 4)
    >>> tuple(layer.embeddings.shape)
    (10, 100, 4)
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_tasks: int,
        weights: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, **kwargs)
        if self.lora_rank:
            self.enable_lora(self.lora_rank)
        self.set_num_tasks(num_tasks)
        if weights is not None:
            if isinstance(weights, list) and len(weights) == 1:  # As Keras takes it.
                weights = weights[0]
            self.build()
            self.set_weights([np.broadcast_to(weights, self.embeddings.shape)])

    def build(self, input_shape: Any = None) -> None:
        self.add_rows(
            "_embeddings",
            (self.input_dim, self.output_dim),
            self.embeddings_initializer,
            name="embeddings",
            regularizer=self.embeddings_regularizer,
            constraint=self.embeddings_constraint,
        )

    def call(self, inputs: Any, task: Any = None) -> Any:
        return self.look_up(inputs, self.parse_task(task, inputs))

    def look_up(self, inputs: Any, task: Task) -> Any:
        """Returns the rows of the examples' own tables.

        Args:
            inputs: Integer tensor of shape `(batch, ...)`.
            task: The `Task` of the call.
        """
        if keras.backend.standardize_dtype(inputs.dtype) not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        index = ops.cast(task.index, inputs.dtype)
        if not task.is_one:
            index = ops.reshape(index, (-1, *(1,) * (len(inputs.shape) - 1)))
        # All tables as one: no task's table is copied, and the gradient is dense. A
        # number that is in no table must not be one of the next task's.
        size, total = self.input_dim, self.num_tasks * self.input_dim
        own = ops.where(inputs < 0, inputs + size, inputs)
        is_there = ops.logical_and(own >= 0, own < size)
        place = ops.where(is_there, index * size + own, total)
        table = ops.reshape(self.embeddings, (total, self.output_dim))
        outputs = ops.take(table, place, axis=0)
        return task.mask(ops.cast(outputs, self.compute_dtype))

    def compute_output_spec(self, inputs: Any, task: Any = None) -> keras.KerasTensor:
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def can_quantize(self, mode: Any) -> bool:
        """Returns that it cannot: its tables would stay floats."""
        return False

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"A {type(self).__name__} has no LoRA: its tables are one for each task."
        )
