"""A dense layer with a kernel for each task."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp.layers._task_rows import TaskRows
from keras_psp.layers._task_units import TaskUnits


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskDense(TaskUnits, TaskRows, keras.layers.Dense):
    """One `keras.layers.Dense` for each task, in one layer: nothing is superposed.

    ```
    y = activation(x W_k + b_k)
    ```

    As the last layer it is the multi-head baseline; as every layer, K networks side by
    side, which is what superposition is measured against. All tasks' kernels start
    alike. Train them with `keras_psp.optimizers.PerTask`: a plain optimizer with
    momentum also moves the kernels of tasks without an example in the batch.

    Args:
        units: Positive integer, dimensionality of the output space.
        num_tasks: Positive integer, the number of tasks.
        units_per_task: List of a positive integer for each task: it has the first so
            many outputs, and the others are `-inf` before the activation. Or `None`.
        **kwargs: `keras.layers.Dense` arguments. Regularizers and constraints see one
            task's kernel at a time. There is no LoRA and no quantization.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`. Examples whose index lies outside `[0, num_tasks)`
        raise a `ValueError` where the index can be read and are NaN in a compiled or
        exported graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskDense(2, num_tasks=10)
    >>> tuple(layer(keras.ops.ones((3, 4)), [0, 7, 7]).shape)
    (3, 2)
    >>> tuple(layer.kernel.shape), tuple(layer.bias.shape)
    ((10, 4, 2), (10, 2))
    """

    def __init__(
        self,
        units: int,
        num_tasks: int,
        units_per_task: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        if self.lora_rank:
            self.enable_lora(self.lora_rank)
        self.set_num_tasks(num_tasks)
        self.set_units_per_task(units_per_task)

    def build(self, input_shape: Any) -> None:
        self.add_rows(
            "_kernel",
            (input_shape[-1], self.units),
            self.kernel_initializer,
            name="kernel",
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.add_rows(
                "bias",
                (self.units,),
                self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs: Any, task: Any = None, training: Any = None) -> Any:
        task = self.parse_task(task, inputs)
        kernel = self.kernel
        rank = len(inputs.shape)

        def one(task):
            return ops.matmul(inputs, take_rows(kernel, task.index))

        def mixed():
            x = inputs if rank > 2 else ops.expand_dims(inputs, 1)
            ones = (1,) * (len(x.shape) - 3)
            kernels = take_rows(kernel, task.index)
            outputs = ops.matmul(
                x, ops.reshape(kernels, (-1, *ones, *kernel.shape[1:]))
            )
            return outputs if rank > 2 else ops.squeeze(outputs, 1)

        def blocks():
            x = ops.reshape(inputs, (self.num_tasks, -1, inputs.shape[-1]))
            outputs = ops.matmul(x, kernel)
            return ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))

        outputs = task.branch(one, mixed, blocks=blocks)
        if self.bias is not None:
            outputs = ops.add(outputs, task.rows(self.bias, outputs))
        outputs = self.cut_outputs(outputs, task)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return task.mask(outputs)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            "A TaskDense has no LoRA: its kernels are one for each task already."
        )
