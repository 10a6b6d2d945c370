"""An embedding that projects back to the vocabulary, with a table for each task."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.private import set_mask
from keras_psp.layers.task_embedding import TaskEmbedding


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskReversibleEmbedding(TaskEmbedding, keras.layers.ReversibleEmbedding):
    """One `keras.layers.ReversibleEmbedding` for each task, as language models have.

    ```
    y = table_k[x],  and with `reverse=True`:  y = x table_k^T
    ```

    With `reverse=True`, a batch of several tasks is computed once for each task: the
    tables are too large to be copied for each example.

    Args:
        input_dim: Positive integer, the size of the vocabulary.
        output_dim: Positive integer, the size of the vectors.
        num_tasks: Positive integer, the number of tasks.
        **kwargs: `keras.layers.ReversibleEmbedding` arguments. Regularizers and
            constraints see one task's table at a time. There is no LoRA and no
            quantization.

    Call arguments:
        inputs: Integer tensor, or a float tensor if `reverse` is true.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.
        reverse: Boolean, whether to project to the vocabulary.

    Input shape:
        `(batch, ...)`, or `(batch, ..., output_dim)` if `reverse` is true.

    Output shape:
        `(batch, ..., output_dim)`, or `(batch, ..., input_dim)` if `reverse` is true.
        Examples whose index lies outside `[0, num_tasks)` raise a `ValueError` where
        the index can be read and are NaN in a compiled or exported graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskReversibleEmbedding(100, 4, num_tasks=10)
    >>> x = layer(keras.ops.array([[1, 2], [3, 4]]), [0, 7])
    >>> tuple(x.shape), tuple(layer(x, [0, 7], reverse=True).shape)
    ((2, 2, 4), (2, 2, 100))

    Reference:
        [Press and Wolf, 2016](https://arxiv.org/abs/1608.05859), task by task.
    """

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        if not self.tie_weights:
            self.add_rows(
                "reverse_embeddings",
                (self.output_dim, self.input_dim),
                self.embeddings_initializer,
            )

    def call(self, inputs: Any, task: Any = None, reverse: bool = False) -> Any:
        task = self.parse_task(task, inputs)
        if not reverse:
            outputs = self.look_up(inputs, task)
            if self.mask_zero:  # Keras asks no further, for this may be reversed.
                set_mask(outputs, ops.not_equal(inputs, 0))
            return outputs
        if self.reverse_dtype is not None:
            inputs = ops.cast(inputs, self.reverse_dtype)

        def project(index: Any) -> Any:
            if self.tie_weights:
                kernel = ops.transpose(take_rows(self.embeddings, index))
            else:
                kernel = take_rows(self.reverse_embeddings, index)
            return ops.matmul(inputs, ops.cast(kernel, inputs.dtype))

        logits = task.branch(
            lambda one: project(one.index), lambda: task.in_turn(project)
        )
        if self.logit_soft_cap is not None:
            cap = self.logit_soft_cap
            logits = ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)
        return task.mask(logits)

    def compute_output_shape(self, input_shape: Any, reverse: bool = False) -> tuple:
        if reverse:
            return (*input_shape[:-1], self.input_dim)
        return (*input_shape, self.output_dim)

    def compute_output_spec(
        self, inputs: Any, task: Any = None, reverse: bool = False
    ) -> keras.KerasTensor:
        shape = self.compute_output_shape(inputs.shape, reverse)
        dtype = self.reverse_dtype if reverse else None
        return keras.KerasTensor(shape, dtype=dtype or self.compute_dtype)
