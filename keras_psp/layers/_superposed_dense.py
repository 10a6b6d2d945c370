"""What every superposed layer is that is a product with a kernel."""

import functools

from keras import ops

from keras_psp._core.task import Task
from keras_psp.layers._superposed import Superposed


class SuperposedDense(Superposed):
    """Mixin of the products whose kernel holds one for each task.

    It stands before a Keras layer among the bases. The layer writes `multiply()`, and
    `bind_inputs()` if what a context binds is not the inputs' last dimension.
    """

    def multiply(self, inputs, kernel):
        """Computes the layer's product."""
        raise NotImplementedError

    def call(self, inputs, task=None, training=None):
        task = Task(task, self.num_tasks, inputs)
        outputs = self._multiply_by_task(inputs, task)
        if self.task_bias is not None:
            outputs = self.task_bias.add_to(outputs, task)
        elif self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return task.mask(outputs)

    def quantized_call(self, inputs, task=None, training=None):
        dense = functools.partial(super().quantized_call, training=training)
        return self.call_bound(dense, inputs, task)

    def quantize(self, mode=None, type_check=True, config=None):
        if self.base is not None or self.task_bias is not None:
            # As Keras' layers do: `Model.quantize()` warns, and goes on to the next.
            raise NotImplementedError(
                "A layer with a base kernel or a bias for each task cannot be "
                f"quantized. Received: {self.name!r}"
            )
        # Keras refuses its subclasses, which might compute something else.
        super().quantize(mode, type_check=False, config=config)

    def _multiply_by_task(self, inputs, task):
        def mixed():
            bound = self.bind_inputs(inputs, task.index)
            return self.multiply(bound, self.kernel)

        if self.base is None:
            return mixed()

        def one(task):  # One product with the sum of the kernels.
            return self.multiply(inputs, self.task_kernel(task.index))

        def both():
            return ops.add(mixed(), self.multiply(inputs, self.base_kernel))

        return task.branch(one, both)
