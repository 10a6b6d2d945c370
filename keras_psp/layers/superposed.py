"""What every superposed layer is, beside the Keras layer it replaces."""

import keras

from keras_psp import contexts
from keras_psp.contexts.task_index import mask_unknown_tasks
from keras_psp.contexts.task_index import split_task
from keras_psp.layers.takes_task import TakesTask


class Superposed(TakesTask):
    """Mixin of the layers that bind their inputs to a task's context.

    It stands before a Keras layer among the bases. `__init__` calls `set_context()`,
    `build()` calls `build_context()`, and `call()` does `call_bound()`.
    """

    def set_context(self, context, num_tasks):
        """Makes `context` (name, config or `Context`) the layer's own."""
        # One name for every context made here, so that the path of its weights is
        # the same in every process: distribution layouts and checkpoints match on it.
        name = {"name": "context"} if isinstance(context, str) else {}
        self.context = contexts.get(context, num_tasks=num_tasks, **name)

    @property
    def num_tasks(self):
        """How many tasks the layer's context holds."""
        return self.context.num_tasks

    def add_tasks(self, n):
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        See `Context.add_tasks()`; it returns the layer itself.
        """
        self.context.add_tasks(n)
        return self

    def check_can_hold(self, num_tasks):
        """Raises a `ValueError` if the context cannot hold `num_tasks`."""
        self.context.check_can_hold(num_tasks)

    def build_context(self, width):
        """Builds the context of `width` numbers, or checks it if it has been built."""
        if not self.context.built:
            self.context.build((None, width))
        known = self.context.input_spec.axes[-1]
        if known != width:
            raise ValueError(
                f"The context was built for {known} inputs; a layer of another width "
                f"needs one of its own. Received: a layer of {width}"
            )

    def call_bound(self, layer_call, inputs, task):
        """Calls `layer_call` on the bound inputs, as it were the layer's own."""
        index, known = split_task(task, self.num_tasks, inputs.shape)
        outputs = layer_call(self.bind_inputs(inputs, index, known))
        return self.mask_outputs(outputs, known)

    def bind_inputs(self, inputs, index, known):
        """Computes what the layer is called with; see `Context.transform()`."""
        return self.context.transform(inputs, index)

    def mask_outputs(self, outputs, known):
        """Makes outputs of unknown tasks NaN; see `mask_unknown_tasks()`.

        The outputs, not the bound inputs: an activation or an integer kernel may turn
        NaN into a number.
        """
        return mask_unknown_tasks(outputs, known)

    def get_config(self):
        context = keras.saving.serialize_keras_object(self.context)
        # `build()` builds it, and so gives its weights the same path as in a new layer.
        context.pop("build_config", None)
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "context": context,
        }

    def _flatten_layers(self, include_self=True, recursive=True):
        # `Model.quantize()` passes over layers that contain others, without a word.
        return [self] if include_self else []
