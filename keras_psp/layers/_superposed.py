"""What every superposed layer is, beside the Keras layer it replaces."""

import math
from typing import Any
from typing import Self

import keras
from keras import ops

from keras_psp import contexts
from keras_psp._core.private import LeafLayer
from keras_psp._core.private import replace_weight
from keras_psp._core.task import Task
from keras_psp._core.task_layer import TaskLayer
from keras_psp.layers._task_bias import TaskBias
from keras_psp.layers._task_low_rank import TaskLowRank


class BaseKernel(keras.layers.Layer):
    """Holds a kernel that all tasks share; Keras saves a child layer's weights.

    It is not trained: every task would move it for all the others. Quantized, it is
    integers with a scale for each of its outputs.
    """

    def build(self, shape: Any) -> None:
        self._shape = tuple(shape)
        if self.quantization_mode is None:
            self._kernel = self.add_weight(
                name="kernel", shape=shape, initializer="zeros", trainable=False
            )
        else:
            self._add_integers()

    @property
    def kernel(self) -> Any:
        """The kernel; a tensor of it, if it is quantized."""
        if self.quantization_mode is None:
            return self._kernel
        rows = ops.convert_to_tensor(self._kernel)
        if self.quantization_mode == "int4":
            rows = keras.quantizers.unpack_int4(rows, self._num_rows, axis=0)
        kernel = ops.divide(ops.cast(rows, self.scale.dtype), self.scale)
        return ops.cast(ops.reshape(kernel, self._shape), self.compute_dtype)

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Does nothing: the layer that it belongs to calls `round_to()`."""

    def round_to(self, policy: Any) -> None:
        """Turns the kernel into integers, for a quantized dtype policy."""
        rows = ops.reshape(self._kernel, (self._num_rows, self._shape[-1]))
        most = {"int8": 127, "int4": 7}[policy.quantization_mode]
        rows, scale = keras.quantizers.abs_max_quantize(
            rows, axis=0, value_range=(-most, most), to_numpy=True
        )
        if policy.quantization_mode == "int4":
            rows = keras.quantizers.pack_int4(ops.convert_to_tensor(rows), axis=0)[0]
        old, self.dtype_policy = self._kernel, policy
        replace_weight(self, old, self._add_integers)
        self._kernel.assign(rows)
        self.scale.assign(scale)

    @property
    def _num_rows(self):
        return math.prod(self._shape[:-1])

    def _add_integers(self):
        rows = self._num_rows
        if self.quantization_mode == "int4":
            rows = -(-rows // 2)  # Two numbers share a byte.
        fixed = {"trainable": False, "autocast": False}
        self._kernel = self.add_weight(
            name="kernel",
            shape=(rows, self._shape[-1]),
            initializer="zeros",
            dtype="int8",
            **fixed,
        )
        self.scale = self.add_weight(
            name="scale", shape=(1, self._shape[-1]), initializer="ones", **fixed
        )


class Superposed(TaskLayer, LeafLayer):
    """Mixin of the layers that bind their inputs to a task's context.

    It stands before a Keras layer among the bases. `__init__` calls `set_context()`,
    and `set_parts()` if there can be something beside the superposed kernel; `build()`
    calls `build_context()` and `build_parts()`; and `call()` computes with what
    `bind_inputs()` returns, or by `call_bound()` all that Keras' layer does.
    """

    # The Keras layer's.
    kernel: Any
    name: Any

    use_bias: bool

    def set_context(self, context: Any, num_tasks: int | None) -> None:
        """Makes `context` (name, config or `Context`) the layer's own."""
        # One name for every context made here, so that the path of its weights is
        # the same in every process: distribution layouts and checkpoints match on it.
        name: dict[str, Any] = {"name": "context"} if isinstance(context, str) else {}
        self.context = contexts.get(context, num_tasks=num_tasks, **name)
        self.base: BaseKernel | None = None
        self.low_rank: TaskLowRank | None = None
        self.task_bias: TaskBias | None = None

    def set_parts(self, base: bool, bias_per_task: bool, rank: int | None) -> None:
        """Sets what there is beside the superposed kernel.

        Args:
            base: Boolean, whether there is a fixed kernel beside the superposed one.
            bias_per_task: Boolean, whether each task has a bias of its own.
            rank: Positive integer, the rank of the kernel that each task has of its
                own, or `None`.
        """
        # Keras tells the children later changes of `trainable` alone.
        options = {"dtype": self.dtype_policy, "trainable": self.trainable}
        if base:
            self.base = BaseKernel(name="base", dtype=self.dtype_policy)
        if rank is not None:
            self.low_rank = TaskLowRank(
                self.num_tasks, rank, name="low_rank", **options
            )
        if bias_per_task and self.use_bias:
            self.task_bias = TaskBias(
                self.num_tasks,
                self.bias_initializer,
                self.bias_regularizer,
                self.bias_constraint,
                name="task_bias",
                **options,
            )
            self.use_bias = False  # The Keras layer's own.

    @property
    def base_kernel(self) -> Any:
        """The kernel that all tasks share, or `None`."""
        return None if self.base is None else self.base.kernel

    @property
    def num_tasks(self) -> int:
        """How many tasks the layer's context holds."""
        return self.context.num_tasks

    def add_tasks(self, n: int) -> Self:
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        See `Context.add_tasks()`; it returns the layer itself.
        """
        self.context.add_tasks(n)
        for rows in self._task_rows:
            rows.add_tasks(n)
        return self

    def remove_tasks(self, *, n: int) -> Self:
        """Removes the last `n` tasks; the others stay exactly as they are.

        See `Context.remove_tasks()`; it returns the layer itself.
        """
        self.context.remove_tasks(n=n)
        for rows in self._task_rows:
            rows.remove_tasks(n=n)
        return self

    def can_quantize(self, mode: Any) -> bool:
        """Whether Keras' `quantize()` can turn the layer's kernels into integers."""
        return False

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuses Keras' LoRA for a built layer: every task would read it.

        Its inner dimension is far smaller than the layer's, so that tasks do not
        average out in it.
        """
        if self.built and self.num_tasks > 1:
            raise ValueError(
                "A LoRA on a superposed layer would move all tasks as much as the one "
                "that is trained: put it into the models before they are superposed. "
                f"Received: {self.name!r}"
            )
        super().enable_lora(*args, **kwargs)

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if the context cannot hold `num_tasks`."""
        self.context.check_can_hold(num_tasks)

    def build_context(self, width: int) -> None:
        """Builds the context of `width` numbers, or checks it if it has been built."""
        if not self.trainable:  # Keras tells the children later changes alone.
            self.context.trainable = False
        if not self.context.built:
            self.context.build((None, width))
        known = self.context.input_spec.axes[-1]
        if known != width:
            raise ValueError(
                f"The context was built for {known} inputs; a layer of another width "
                f"needs one of its own. Received: a layer of {width}"
            )

    def build_parts(self, bias_shape: Any) -> None:
        """Builds what `set_parts()` has set.

        Args:
            bias_shape: The shape of one task's bias, which broadcasts against the
                layer's outputs for one example.
        """
        if self.base is not None:
            self.base.build(self.kernel.shape)
        if self.low_rank is not None:
            kernel = keras.KerasTensor(self.kernel.shape)
            self.low_rank.build(self.kernel_rows(kernel).shape)
        if self.task_bias is not None:
            self.task_bias.build(bias_shape)

    def kernel_rows(self, kernel: Any) -> Any:
        """Returns a kernel as `(M, N)`, a row for each number in `input_rows()`."""
        return kernel

    def kernel_of_rows(self, rows: Any) -> Any:
        """Returns the kernel whose `kernel_rows()` these are."""
        return rows

    def input_rows(self, inputs: Any) -> Any:
        """Returns what each group of filters is multiplied with, `(n, groups, M)`."""
        return ops.reshape(inputs, (-1, 1, inputs.shape[-1]))

    def task_kernel(self, index: Any) -> Any:
        """Returns the kernel that one task sees: `C_k W`, and what is beside it.

        Args:
            index: Integer or scalar int32 tensor, a task.

        Returns:
            Tensor like `kernel`.
        """
        # C W = (W^T C^T)^T
        rows = self.kernel_rows(self.kernel)
        rows = self._transform_rows(self.context.unbind, rows, index)
        kernel, beside = self.kernel_of_rows(rows), self.kernel_beside(index)
        return kernel if beside is None else ops.add(kernel, beside)

    def kernel_beside(self, index: Any) -> Any:
        """Returns what one task sees beside `C_k W`: `W_0 + A_k B_k`, or `None`."""
        if self.low_rank is None:
            return self.base_kernel
        kernel = self.kernel_of_rows(self.low_rank.kernel_rows(index))
        return kernel if self.base is None else ops.add(kernel, self.base_kernel)

    def unbind_rows(self, rows: Any, index: Any) -> Any:
        """Returns `C_k^T W` for the `(M, N)` rows of `kernel_rows()`, of any N."""
        return self._transform_rows(self.context.bind, rows, index)

    def call_bound(self, layer_call: Any, inputs: Any, task: Any) -> Any:
        """Calls `layer_call` on the bound inputs, as it were the layer's own."""
        task = Task(task, self.num_tasks, inputs)
        outputs = layer_call(self.bind_inputs(inputs, task.index))
        # The outputs, not the bound inputs: an activation or an integer kernel may
        # turn NaN into a number.
        return task.mask(outputs)

    def bind_inputs(self, inputs: Any, index: Any) -> Any:
        """Computes what the kernel is multiplied with; see `Context.transform()`."""
        return self.context.transform(inputs, index)

    def multiply_first(self, inputs: Any, rows: Any) -> Any:
        """Multiplies with rows `(M, n)`; returns `(batch, ..., n)`."""
        return ops.matmul(inputs, rows)

    def multiply_second(self, products: Any, rows: Any) -> Any:
        """Multiplies what `multiply_first()` returned with `(n, N)`, to outputs."""
        return ops.matmul(products, rows)

    def _multiply_low_rank(self, inputs, task):
        return self.low_rank.multiply(
            inputs, task, self.multiply_first, self.multiply_second
        )

    @property
    def _task_rows(self):
        children = (self.low_rank, self.task_bias)
        return [child for child in children if child is not None]

    def _transform_rows(self, transform, rows, index):
        # The context binds all rows, or as many at each place.
        width = self.context.input_spec.axes[-1]
        x = ops.reshape(rows, (-1, width, rows.shape[-1]))
        x = ops.transpose(transform(ops.transpose(x, (0, 2, 1)), index), (0, 2, 1))
        return ops.reshape(x, rows.shape)

    def get_config(self) -> dict[str, Any]:
        context = keras.saving.serialize_keras_object(self.context)
        # `build()` builds it, and so gives its weights the same path as in a new layer.
        context.pop("build_config", None)
        config = {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "context": context,
        }
        if self.base is not None:
            config["base"] = True
        if self.low_rank is not None:
            config["rank"] = self.low_rank.rank
        if self.task_bias is not None:
            config["bias_per_task"] = True
            if "use_bias" in config:
                config["use_bias"] = True
        return config
