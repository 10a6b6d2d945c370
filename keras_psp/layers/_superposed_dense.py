"""What all superposed layers share whose call is one product with a kernel."""

import threading
from typing import Any

from keras import ops

from keras_psp._core.task import Task
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._superposed import add_up

# `layer` is the one whose product alone Keras computes now. No context variable:
# `torch.compile` cannot trace them.
_bare = threading.local()


class SuperposedDense(Superposed):
    """Mixin of the products whose kernel holds one for each task.

    It stands before a Keras layer among the bases. The layer writes `multiply()`, and
    `bind_inputs()` if what a context binds is not the inputs' last dimension.
    """

    units_per_task: Any = None  # Of layers that are `TaskUnits` too.

    def multiply(self, inputs: Any, kernel: Any) -> Any:
        """Computes the layer's product."""
        raise NotImplementedError

    def call(self, inputs: Any, task: Any = None, training: Any = None) -> Any:
        task = self.as_task(task, inputs)
        outputs = self._multiply_by_task(inputs, task)
        if self.task_bias is not None:
            outputs = self.task_bias.add_to(outputs, task)
        elif self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return self._activate(outputs, task)

    def quantized_call(
        self, inputs: Any, task: Any = None, training: Any = None
    ) -> Any:
        task = self.as_task(task, inputs)
        bound = self.bind_inputs(inputs, task.index)
        is_whole = self.base is None and not self.other_parts()
        if is_whole and self.units_per_task is None:
            outputs = super().quantized_call(bound, training=training)
            return task.mask(outputs)
        _bare.layer = self  # What is to be added comes before the activation.
        try:
            outputs = super().quantized_call(bound, training=training)
        finally:
            _bare.layer = None
        if self.base is not None:
            base = self.multiply(inputs, self.base_kernel)
            outputs = ops.add(outputs, ops.cast(base, outputs.dtype))
        if self.own_kernels:
            own = self._branch_own(inputs, task)
            outputs = ops.add(outputs, ops.cast(own, outputs.dtype))
        if self.task_bias is not None:
            outputs = self.task_bias.add_to(outputs, task)
        return self._activate(outputs, task)

    def cut_outputs(self, outputs: Any, task: Task) -> Any:
        """Returns the outputs: each task has all of them."""
        return outputs

    def _activate(self, outputs, task):
        outputs = self.cut_outputs(outputs, task)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return task.mask(outputs)

    @property
    def activation(self) -> Any:
        """The activation; `None` while Keras computes the quantized product alone."""
        return None if getattr(_bare, "layer", None) is self else self._activation

    @activation.setter
    def activation(self, activation: Any) -> None:
        self._activation = activation

    def can_quantize(self, mode: Any) -> bool:
        if self.context is None:
            return super().can_quantize(mode)
        has_one_kernel = self.base is None and not self.own_kernels
        return mode in ("int8", "int4") or (mode == "float8" and has_one_kernel)

    def _multiply_by_task(self, inputs, task):
        def bound():
            if self.context is None:
                return []
            bound = self.bind_inputs(inputs, task.index)
            return [self.multiply(bound, self.kernel)]

        if self.base is None and self.core is None:
            if self.low_rank is None:
                return add_up(bound())
            return add_up([*bound(), self._branch_own(inputs, task)])

        def one(task):  # One product with the sum of the kernels.
            return self.multiply(inputs, self.task_kernel(task.index))

        def mixed():
            products = bound()
            if self.base is not None:
                products.append(self.multiply(inputs, self.base_kernel))
            return add_up([*products, *self._multiply_own(inputs, task)])

        return task.branch(one, mixed)

    def _branch_own(self, inputs, task):
        def multiply(task=task):
            return add_up(self._multiply_own(inputs, task))

        return task.branch(multiply, multiply)
