"""What all superposed layers add to the Keras layers that they replace."""

import functools
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_psp import contexts
from keras_psp._core.backend import reshape
from keras_psp._core.backend import transpose
from keras_psp._core.checks import check_integer
from keras_psp._core.private import LeafLayer
from keras_psp.layers._base_kernel import BaseKernel
from keras_psp.layers._few_bits import QUANTIZATION
from keras_psp.layers._few_bits import check_bits_of
from keras_psp.layers._task_bias import TaskBias
from keras_psp.layers._task_core import TaskCore
from keras_psp.layers._task_core import check_core
from keras_psp.layers._task_low_rank import TaskLowRank
from keras_psp.layers._task_low_rank import check_rank
from keras_psp.layers._task_parts import TaskParts


def check_parts(
    context: Any, num_tasks: Any, base: bool, rank: Any, core: Any, bits: Any
) -> dict[str, int | None]:
    """Checks the arguments that say what there is beside a superposed kernel.

    Returns:
        Dictionary of the bits of `"base"`, `"core"` and `"rank"`.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number is out of range, or there would be no kernel at all.
    """
    if rank is not None:
        check_rank(rank)
    if core is not None:
        check_core(core)
    if context is None:
        if num_tasks is None:
            raise ValueError(
                "`num_tasks` is needed where there is no context. Received: "
                "context=None, num_tasks=None"
            )
        check_integer("num_tasks", num_tasks)
        if not base and rank is None and core is None:
            raise ValueError(
                "Without a context there must be a `base`, a `rank` or a `core`. "
                "Received: context=None, base=False, rank=None, core=None"
            )
    parts = {"base": bool(base), "core": core is not None, "rank": rank is not None}
    return check_bits_of(bits, parts)


def add_up(tensors: Iterable[Any]) -> Any:
    """Returns the sum of tensors of one shape."""
    return functools.reduce(ops.add, tensors)


class Superposed(TaskParts, LeafLayer):
    """Mixin of the layers that bind their inputs to a task's context.

    It stands before a Keras layer among the bases. `__init__` calls `set_context()`,
    and `set_parts()` if there can be something beside the superposed kernel; `build()`
    calls `build_context()` and `build_parts()`; and `call()` computes with what
    `bind_inputs()` returns, or by `call_bound()` all that Keras' layer does.
    """

    # The Keras layer's. Not a property: `torch.compile` cannot trace `super()` in it.
    kernel: Any  # `None` without a context.
    name: Any
    use_bias: bool

    def set_context(self, context: Any, num_tasks: int | None) -> None:
        """Makes `context` the layer's own.

        Args:
            context: Name, config or `Context`; or `None` for no superposed kernel.
            num_tasks: Positive integer, or `None` if the context knows it.
        """
        self.base: BaseKernel | None = None
        self.core: TaskCore | None = None
        self.low_rank: TaskLowRank | None = None
        self.task_bias: TaskBias | None = None
        self.context: Any = None
        if context is None:
            self._num_tasks: Any = num_tasks  # Which `set_parts()` checks.
            return
        # One name for every context made here, so that the path of its weights is
        # the same in every process: distribution layouts and checkpoints match on it.
        name: dict[str, Any] = {"name": "context"} if isinstance(context, str) else {}
        self.context = contexts.get(context, num_tasks=num_tasks, **name)

    def set_parts(
        self,
        base: bool,
        bias_per_task: bool,
        rank: int | str | None,
        core: Any = None,
        bits: Any = None,
    ) -> None:
        """Sets what there is beside the superposed kernel.

        Args:
            base: Boolean, whether there is a fixed kernel beside the superposed one.
            bias_per_task: Boolean, whether each task has a bias of its own.
            rank: Positive integer, the rank of the kernel that each task has of its
                own, or `"full"` for a whole one, or `None`.
            core: Positive integer, or a pair of these: the size of the core that each
                task has between two factors that tasks share; or `None`.
            bits: Integer in [1, 8], or a dictionary of these for `"base"`, `"core"`
                and `"rank"`: how many bits their numbers are stored in. Or `None`.
        """
        few = check_parts(self.context, self.num_tasks, base, rank, core, bits)
        if self.context is None and self.quantization_mode is not None:
            raise ValueError(
                "Without a context there is no kernel that Keras quantizes; use `bits`."
                f" Received: context=None, dtype={self.dtype_policy.name!r}"
            )
        # Keras tells the children later changes of `trainable` alone.
        options = {"dtype": self.dtype_policy, "trainable": self.trainable}
        if base:
            self.base = BaseKernel(
                self.kernel_rows,
                self.kernel_of_rows,
                bits=few["base"],
                name="base",
                dtype=self.dtype_policy,
            )
        if core is not None:
            self.core = TaskCore(
                self.num_tasks, core, few["core"], name="core", **options
            )
        if rank is not None:
            self.low_rank = TaskLowRank(
                self.num_tasks, rank, few["rank"], name="low_rank", **options
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
    def kernel_shape(self) -> tuple:
        """The shape of the kernel that a task sees."""
        return self._kernel_shape if self.context is None else tuple(self.kernel.shape)

    @property
    def own_kernels(self) -> list:
        """What holds the kernels that each task has of its own."""
        return [each for each in (self.core, self.low_rank) if each is not None]

    @property
    def base_kernel(self) -> Any:
        """The kernel that all tasks share, or `None`."""
        return None if self.base is None else self.base.kernel

    def can_quantize(self, mode: Any) -> bool:
        """Whether `quantize()` can turn the layer's kernels into integers."""
        return self.context is None and mode in QUANTIZATION and bool(self._floats)

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Quantizes the superposed kernel as Keras does, and rounds what is beside it.

        Without a context, the parts that are floats get 8 bits (`"int8"`) or 4
        (`"int4"`).

        Raises:
            NotImplementedError: The layer cannot be quantized in this mode, or has no
                floats left. Nothing has changed then.
        """
        name = mode if config is None else config.mode
        if not self.can_quantize(name):
            raise NotImplementedError(
                f"A {type(self).__name__} cannot be quantized to {name!r}. "
                f"Received: {self.name!r}"
            )
        floats = self._floats
        if self.context is not None:
            # Keras refuses its subclasses, which might compute something else.
            super().quantize(mode, type_check=False, config=config)
            if self.base is not None and self.base in floats:
                floats.remove(self.base)
                self.base.round_to(self.dtype_policy)
        for part in floats:
            part.round_to_bits(QUANTIZATION[name])

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuses Keras' LoRA for a built layer: every task would read it.

        Its inner dimension is far smaller than the layer's, so that tasks do not
        average out in it.
        """
        if self.context is None:
            raise ValueError(
                "Without a context there is no kernel that a LoRA could be added to; "
                f"use `rank`. Received: {self.name!r}"
            )
        if self.built and self.num_tasks > 1:
            raise ValueError(
                "A LoRA on a superposed layer would move all tasks as much as the one "
                "that is trained: put it into the models before they are superposed. "
                f"Received: {self.name!r}"
            )
        super().enable_lora(*args, **kwargs)

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if the context cannot hold `num_tasks`."""
        if self.context is not None:
            self.context.check_can_hold(num_tasks)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a weight, as Keras does; without a context no superposed kernel."""
        if self.context is None and kwargs.get("name") == "kernel":
            self._kernel_shape = tuple(kwargs["shape"])
            return None
        return super().add_weight(*args, **kwargs)

    def build_context(self, width: int) -> None:
        """Builds the context of `width` numbers, or checks it if it has been built."""
        if self.context is None:
            return
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
            self.base.build(self.kernel_shape)
        for own in self.own_kernels:
            own.build(self.kernel_rows(keras.KerasTensor(self.kernel_shape)).shape)
        if self.task_bias is not None:
            self.task_bias.build(bias_shape)

    def kernel_rows(self, kernel: Any) -> Any:
        """Returns a kernel as `(M, N)`, a row for each number in `input_rows()`."""
        return kernel

    def kernel_of_rows(self, rows: Any) -> Any:
        """Returns the kernel whose `kernel_rows()` these are."""
        return rows

    def inputs_met(self, inputs: Any) -> Any:
        """Returns what the filters meet at each place, `(batch, ..., groups, M)`."""
        return ops.expand_dims(inputs, -2)

    def input_rows(self, inputs: Any) -> Any:
        """Returns what each group of filters is multiplied with, `(n, groups, M)`."""
        met = self.inputs_met(inputs)
        return ops.reshape(met, (-1, *met.shape[-2:]))

    def task_kernel(self, index: Any) -> Any:
        """Returns the kernel that one task sees: `C_k W`, and what is beside it.

        Args:
            index: Integer or scalar int32 tensor, a task.

        Returns:
            Tensor like `kernel`.
        """
        if self.context is None:
            return ops.convert_to_tensor(self.kernel_beside(index))
        # C W = (W^T C^T)^T
        rows, beside = self.kernel_rows(self.kernel), self._rows_beside(index)
        if beside is None:
            rows = self._transform_rows(self.context.unbind, index, rows)
        else:
            rows = self._transform_rows(self.context.unbind_onto, index, rows, beside)
        return self.kernel_of_rows(rows)

    def kernel_beside(self, index: Any) -> Any:
        """Returns what one task sees beside `C_k W`, or `None` if there is nothing.

        That is `W_0 + A core_k V^T + A_k B_k`, or those of these that there are.
        """
        rows = self._rows_beside(index)
        return None if rows is None else self.kernel_of_rows(rows)

    def _rows_beside(self, index):
        rows = [] if self.base is None else [self.kernel_rows(self.base_kernel)]
        rows += [own.kernel_rows(index) for own in self.own_kernels]
        return add_up(rows) if rows else None

    def unbind_rows(self, rows: Any, index: Any) -> Any:
        """Returns `C_k^T W` for the `(M, N)` rows of `kernel_rows()`, of any N."""
        return self._transform_rows(self.context.bind, index, rows)

    def call_bound(self, layer_call: Any, inputs: Any, task: Any) -> Any:
        """Calls `layer_call` on the bound inputs, as it were the layer's own."""
        task = self.as_task(task, inputs)
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
        """Multiplies what `multiply_first()` returned with `(n, N)`, to outputs.

        Without rows it only gives it the shape of the outputs.
        """
        return products if rows is None else ops.matmul(products, rows)

    def _multiply_own(self, inputs, task):
        """Returns the inputs' products with each of the tasks' own kernels, a list."""
        return [own.multiply(inputs, task, self) for own in self.own_kernels]

    def other_parts(self) -> list:
        """Returns what holds tasks beside the context."""
        bias = [] if self.task_bias is None else [self.task_bias]
        return [*self.own_kernels, *bias]

    @property
    def _floats(self):
        """What is beside the superposed kernel and not stored in few bits."""
        parts = [part for part in (self.base, *self.own_kernels) if part is not None]
        return [part for part in parts if part.bits is None]

    def _transform_rows(self, transform, index, *rows):
        # The context binds all rows, or as many at each place.
        width, shape = self.context.input_spec.axes[-1], rows[0].shape
        if shape[0] == width:
            x = transform(*(transpose(each, (1, 0)) for each in rows), index)
            return transpose(x, (1, 0))
        rows = (reshape(each, (-1, width, shape[-1])) for each in rows)
        x = transform(*(transpose(each, (0, 2, 1)) for each in rows), index)
        return reshape(transpose(x, (0, 2, 1)), shape)

    def save_own_variables(self, store: Any) -> None:
        if self.context is None:  # Keras would save a kernel.
            keras.layers.Layer.save_own_variables(self, store)
        else:
            super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        if self.context is None:
            keras.layers.Layer.load_own_variables(self, store)
        else:
            super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        context = keras.saving.serialize_keras_object(self.context)
        if context is not None:
            # `build()` builds it, and so gives its weights the same path as in a new
            # layer.
            context.pop("build_config", None)
        config = {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "context": context,
        }
        bits = {}
        if self.base is not None:
            config["base"], bits["base"] = True, self.base.bits
        if self.core is not None:
            config["core"], bits["core"] = self.core.size, self.core.bits
        if self.low_rank is not None:
            config["rank"], bits["rank"] = self.low_rank.rank, self.low_rank.bits
        bits = {name: number for name, number in bits.items() if number is not None}
        if bits:
            config["bits"] = bits
        if self.task_bias is not None:
            config["bias_per_task"] = True
            if "use_bias" in config:
                config["use_bias"] = True
        return config
