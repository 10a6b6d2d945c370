"""The superposed dense layer."""

import keras

from keras_psp import contexts
from keras_psp.contexts.task_index import check_task
from keras_psp.contexts.task_index import mask_unknown_tasks
from keras_psp.contexts.task_index import split_task


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPDense(keras.layers.Dense):
    """A `keras.layers.Dense` that holds many kernels in one, one for each task.

    ```
    y = activation((x C_k) W + b)
    ```

    so that task k sees the kernel `C_k W`. Everything else is Dense's: regularizers,
    constraints, dtype policies, LoRA, quantization, saving.

    Args:
        units: Positive integer, dimensionality of the output space.
        num_tasks: Positive integer, the number of tasks. May be left out where
            `context` knows it.
        context: Name of a context family, `keras_psp.contexts.Context`, or its
            serialized form. Defaults to `"binary"`.
        **kwargs: `keras.layers.Dense` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example. A float index is a `TypeError`.

    Input shape:
        `(batch, ..., input_dim)`.

    Output shape:
        `(batch, ..., units)`. Examples whose index lies outside `[0, num_tasks)`
        raise a `ValueError` where the index can be read and are NaN in a compiled or
        exported graph.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPDense(2, num_tasks=10)
    >>> x = keras.ops.ones((3, 4))
    >>> tuple(layer(x, [0, 7, 7]).shape)
    (3, 2)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3.
    """

    def __init__(self, units, num_tasks=None, context="binary", **kwargs):
        super().__init__(units, **kwargs)
        # One name for every context made here, so that the path of its weights is
        # the same in every process: distribution layouts and checkpoints match on it.
        name = {"name": "context"} if isinstance(context, str) else {}
        self.context = contexts.get(context, num_tasks=num_tasks, **name)

    @property
    def num_tasks(self):
        """How many tasks the layer's context holds."""
        return self.context.num_tasks

    def __call__(self, inputs, task, **kwargs):
        task = check_task(task, self.num_tasks)
        return super().__call__(inputs, task=task, **kwargs)

    def build(self, input_shape):
        if not self.context.built:
            self.context.build(input_shape)
        width = self.context.input_spec.axes[-1]
        if width != input_shape[-1]:
            raise ValueError(
                f"The context was built for {width} inputs; a layer of another width "
                f"needs one of its own. Received: input_shape={input_shape}"
            )
        super().build(input_shape)

    def call(self, inputs, task, training=None):
        return self._call_bound(super().call, inputs, task, training)

    def quantized_call(self, inputs, task, training=None):
        return self._call_bound(super().quantized_call, inputs, task, training)

    def quantize(self, mode=None, type_check=True, config=None):
        # Dense refuses its subclasses, which might compute something else.
        super().quantize(mode, type_check=False, config=config)

    def get_config(self):
        context = keras.saving.serialize_keras_object(self.context)
        # `build()` builds it, and so gives its weights the same path as in a new layer.
        context.pop("build_config", None)
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "context": context,
        }

    def _call_bound(self, dense, inputs, task, training):
        index, known = split_task(task, self.num_tasks, inputs.shape)
        outputs = dense(self.context.bind(inputs, index), training=training)
        # The outputs, not the bound inputs: an activation or an integer kernel may
        # turn NaN into a number.
        return mask_unknown_tasks(outputs, known)

    def _flatten_layers(self, include_self=True, recursive=True):
        # `Model.quantize()` passes over layers that contain others, without a word.
        return [self] if include_self else []
