"""The interface of every context family."""

from typing import Any
from typing import Self

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_integer
from keras_psp._core.initial import Initial
from keras_psp._core.private import replace_weight
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import check_task_index
from keras_psp._core.task_index import is_soft
from keras_psp._core.task_layer import TaskLayer
from keras_psp._core.task_rows import mark_task_rows


class Context(TaskLayer, keras.layers.Layer):
    """Base class of the contexts: one orthogonal map `C_k` of the inputs per task.

    ```
    context(x, k) = x C_k
    ```

    To add a family, subclass it and write `draw()`, which says what each task needs,
    and `bind()` and `unbind()`, which apply `C_k` and its transpose; and set the class
    attribute `can_learn` if what a task needs may be trained. examples/own_context.py
    is such a family.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal contexts, on every backend,
            and more tasks leave the first ones as they are.
        learnable: Boolean, whether the contexts are trained. Defaults to `False`.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example. Or soft contexts: a float tensor
            of shape `(batch, num_tasks)`, a weight for each task (see `mix()`).

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled graph.

    Attributes:
        contexts: What `draw()` returned, as one weight with a row for each task;
            `None` if a task needs nothing.

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3.
    """

    can_learn = False

    def __init__(
        self, num_tasks: int, seed: int = 0, learnable: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_tasks = check_integer("num_tasks", num_tasks)
        if learnable and not self.can_learn:
            raise ValueError(
                f"A {type(self).__name__} context has nothing to learn. "
                f"Received: learnable={learnable!r}"
            )
        self.seed = check_integer("seed", seed, least=0)
        self.learnable = learnable
        self.contexts = None
        self.supports_masking = True
        # By which number each task's context is drawn, and the least number that no
        # task has had. What a removed task has written is read with its number alone.
        # A range takes no memory; it is an int32 array once an index was reused.
        self._numbers: Any = range(self.num_tasks)
        self._next_number = self.num_tasks

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        if not width:
            raise ValueError(
                "The last dimension of the inputs must be known, and positive. "
                f"Received: input_shape={input_shape}"
            )
        self.input_spec = keras.InputSpec(axes={-1: width})
        self.check_can_hold(self.num_tasks)
        rows = self._draw_numbers(self._numbers)
        if rows is not None:
            self._add_contexts(rows)

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.as_task(task, inputs)
        return task.mask(self.transform(inputs, task.index))

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return input_shape

    def draw(self, tasks: Any, width: int) -> Any:
        """Draws what each task needs, with NumPy, from `self.seed`.

        Args:
            tasks: `range` of consecutive tasks. What one task gets must not depend on
                the others asked for, or `add_tasks()` would change it.
            width: Integer, the number M of inputs.

        Returns:
            Array of shape `(len(tasks), ...)`, or `None` if a task needs nothing.
            Integers keep their dtype, floats get the layer's.
        """
        raise NotImplementedError

    def bind(self, inputs: Any, index: Any) -> Any:
        """Computes `x C_k` for indices that are known to be valid.

        Args:
            inputs: Float tensor of shape `(batch, ..., M)`.
            index: Integer, or int32 tensor of shape `()` or `(batch,)`.

        Returns:
            Tensor like `inputs`.
        """
        raise NotImplementedError

    def unbind(self, inputs: Any, index: Any) -> Any:
        """Computes `x C_k^T`; arguments and result as for `bind()`."""
        raise NotImplementedError

    def unbind_onto(self, inputs: Any, others: Any, index: Any) -> Any:
        """Computes `x C_k^T + y` for `others` y of the inputs' shape.

        Families that can compute it in one pass do.
        """
        return ops.add(self.unbind(inputs, index), others)

    def rows_of(self, index: Any) -> Any:
        """Looks up what `draw()` has drawn for tasks; `bind()` needs it.

        On TensorFlow the gradient of `ops.take()` has a slice for each example, and
        Adam would train learnable contexts otherwise than on JAX and torch.

        Args:
            index: Integer, or int32 tensor of shape `()` or `(batch,)`.

        Returns:
            Tensor of the shape of `index`, followed by that of a row.
        """
        return take_rows(self.contexts, index)

    def mix(self, inputs: Any, weights: Any) -> Any:
        """Computes `x` bound to a mixture of contexts, `x (sum_k w_k C_k)`.

        Families whose contexts have a mean of their own kind (phases) use that.

        Args:
            inputs: Float tensor of shape `(batch, ..., M)`.
            weights: Float tensor of shape `(batch, num_tasks)`.

        Returns:
            Tensor like `inputs`.
        """
        # Every example is bound once by each task.
        shape = inputs.shape[1:]
        tasks = np.arange(self.num_tasks, dtype="int32")
        index = ops.add(ops.zeros_like(weights, "int32"), tasks)
        repeated = ops.repeat(inputs, self.num_tasks, axis=0)
        bound = self.bind(repeated, ops.reshape(index, (-1,)))
        bound = ops.reshape(bound, (-1, self.num_tasks, *shape))
        weights = ops.cast(weights, inputs.dtype)
        return ops.einsum("bk,bk...->b...", weights, bound)

    def transform(self, inputs: Any, index: Any) -> Any:
        """Binds or mixes, whichever `index` (see `Task`) asks for."""
        return (self.mix if is_soft(index) else self.bind)(inputs, index)

    def bind_kernel(self, kernel: Any, task: Any) -> Any:
        """Returns `C_k W`, the kernel that task k sees.

        Args:
            kernel: Float tensor of shape `(M, units)`.
            task: Integer, or scalar integer tensor.

        Returns:
            Tensor like `kernel`.
        """
        return self._map_kernel(self.unbind, kernel, task)

    def unbind_kernel(self, kernel: Any, task: Any) -> Any:
        """Returns `C_k^T W`, the kernel that task k sees as `W`.

        Args:
            kernel: Float tensor of shape `(M, units)`.
            task: Integer, or scalar integer tensor.

        Returns:
            Tensor like `kernel`.
        """
        return self._map_kernel(self.bind, kernel, task)

    def add_tasks(self, n: int) -> Self:
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        A model that contains the context must be told: `TaskModel.add_tasks()` tells
        all its layers, and compiled functions.

        Args:
            n: Positive integer.

        Returns:
            The context itself.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is not positive, or the family cannot hold so many tasks.
        """
        total = self.num_tasks + check_integer("n", n)
        self.check_can_hold(total)
        numbers = range(self._next_number, self._next_number + n)
        if self.built:
            more = self._draw_numbers(numbers)
            if more is not None:
                bank = ops.convert_to_numpy(self.contexts)
                self._replace_contexts(np.concatenate([bank, more]))
        if self._are_plain():
            self._numbers = range(total)
        else:
            self._numbers = np.array([*self._numbers, *numbers], "int32")
        self.num_tasks = total
        self._next_number += n
        return self

    def remove_tasks(self, *, n: int) -> Self:
        """Removes the last `n` tasks; the others stay exactly as they are.

        A model that contains the context must be told: see `add_tasks()`.

        Args:
            n: Positive integer, less than the number of tasks. By keyword alone: it
                is no task's index.

        Returns:
            The context itself.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is not positive, or no task would be left.
        """
        total = self.num_tasks - check_fewer_tasks(n, self.num_tasks)
        if self.contexts is not None:
            self._replace_contexts(ops.convert_to_numpy(self.contexts)[:total])
        self.num_tasks = total
        # It undoes `add_tasks()`, unless one of them is gone or has had another number.
        last = range(self._next_number - n, self._next_number)
        if (
            np.array_equal(self._numbers[total:], last)
            and max(self.removed_tasks, default=0) < total
        ):
            self._next_number -= n
        self._numbers = self._numbers[:total]
        self.removed_tasks = [k for k in self.removed_tasks if k < total]
        return self

    def remove_task(self, index: int) -> Self:
        """Takes its context from a task; the others keep theirs.

        A model that contains the context must be told: see `TaskModel.remove_task()`.

        Args:
            index: Integer, a task.

        Returns:
            The context itself.

        Raises:
            TypeError: `index` is no integer.
            ValueError: There is no such task.
        """
        if (
            index not in self.removed_tasks
        ):  # Or another layer, which shares it, did it.
            index = check_task_index(index, self.num_tasks)
            self._set_row(index, None)
            self.removed_tasks = (*self.removed_tasks, index)
        return self

    def reuse_task(self, index: int) -> Self:
        """Gives a new context to the index of a task that was removed.

        It is drawn anew: with the removed task's own, that task's kernels could still
        be read from what it has written into shared ones.

        Args:
            index: Integer, one of `removed_tasks`.

        Returns:
            The context itself.

        Raises:
            ValueError: The family cannot hold so many tasks, removed ones among them.
        """
        if index in self.removed_tasks:  # Or another layer's, which shares it, did it.
            self.check_can_hold(self.num_tasks + 1)
            self._set_row(index, self._next_number)
            numbers = np.array(self._numbers, "int32")
            numbers[index] = self._next_number
            self._numbers = numbers
            self._next_number += 1
            self.removed_tasks = [k for k in self.removed_tasks if k != index]
        return self

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if the family cannot hold `num_tasks`.

        That depends on the width of the inputs: before it is known nothing is checked.
        """
        if self.input_spec is None:
            return
        width = self.input_spec.axes[-1]
        limit = self.max_num_tasks(width)
        spent = self._next_number - self.num_tasks  # By tasks that were removed.
        if limit is not None and num_tasks + spent > limit:
            removed = f", {spent} removed ones among them" if spent else ""
            raise ValueError(
                f"{type(self).__name__} contexts of {width} inputs hold at most "
                f"{limit} tasks{removed}. Received: num_tasks={num_tasks}"
            )

    def max_num_tasks(self, width: int) -> int | None:
        """Returns how many tasks the family holds for `width` inputs; `None`: any."""
        return None

    @property
    def numbers_per_task(self) -> int:
        """How many numbers one more task costs."""
        self._check_built()
        return 0 if self.contexts is None else int(np.prod(self.contexts.shape[1:]))

    @property
    def bits_per_task(self) -> int:
        """How many bits of memory one more task costs."""
        self._check_built()
        if self.contexts is None:
            return 0
        dtype = keras.backend.standardize_dtype(self.contexts.dtype)
        size = 16 if dtype == "bfloat16" else 8 * np.dtype(dtype).itemsize
        return size * int(np.prod(self.contexts.shape[1:]))

    def orthogonality_drift(self) -> np.ndarray:
        """Returns how far each `C_k` is from an orthogonal map.

        Returns:
            float64 array of shape `(num_tasks,)`: the largest element of
            `|C_k C_k^T - I|`. Zero but for rounding if the contexts are fixed.
        """
        self._check_built()
        eye = np.eye(self.input_spec.axes[-1])
        drift = []
        for k in range(self.num_tasks):
            bound = self.bind(ops.convert_to_tensor(eye, "float32"), k)
            product = ops.convert_to_numpy(ops.stop_gradient(self.unbind(bound, k)))
            drift.append(np.abs(product - eye).max())
        return np.array(drift, "float64")

    def can_quantize(self, mode: str) -> bool:
        """Returns `True`: there is no kernel to quantize."""
        return True

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Does nothing: `Model.quantize()` asks every layer, and signs are bytes."""

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "seed": self.seed,
            "learnable": self.learnable,
        }
        if not self._are_plain():
            config["numbers"] = [*map(int, self._numbers), self._next_number]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        numbers = config.pop("numbers", None)
        context = super().from_config(config)
        if numbers is not None:
            context._take_numbers(numbers)
        return context

    # Under the family's name, so that no other family takes it for its own.

    def save_own_variables(self, store: Any) -> None:
        for variable in self.weights:
            store[f"{type(self).__name__}.{variable.name}"] = variable
        length = max(1, -(-self.seed.bit_length() // 8))
        seed = np.frombuffer(self.seed.to_bytes(length, "little"), "uint8")
        store[f"{type(self).__name__}.seed"] = seed
        if "numbers" in (config := self.get_config()):
            store[f"{type(self).__name__}.numbers"] = np.array(config["numbers"])

    def load_own_variables(self, store: Any) -> None:
        names = [f"{type(self).__name__}.{v.name}" for v in self.weights]
        seed, numbers = (f"{type(self).__name__}.{x}" for x in ("seed", "numbers"))
        if sorted({*store.keys()} - {seed, numbers}) != sorted(names):
            raise ValueError(
                f"These are not the weights of {self.num_tasks} tasks' "
                f"{type(self).__name__} contexts: expected {names}. "
                f"Received: {list(store.keys())}"
            )
        if seed in store.keys():  # Release 0.1.0 did not write it.
            value = np.asarray(store[seed], "uint8").tobytes()
            self._take_seed(int.from_bytes(value, "little"))
        for variable, name in zip(self.weights, names, strict=True):
            variable.assign(store[name])
        if numbers in store.keys():
            self._take_numbers(np.array(store[numbers]).tolist())
        else:
            self._numbers, self._next_number = range(self.num_tasks), self.num_tasks

    def numbers_of(self, index: Any = None) -> Any:
        """Returns the numbers that contexts without rows are drawn by.

        Args:
            index: Integer, or int32 tensor of shape `()` or `(batch,)`; or `None`, for
                all tasks.

        Returns:
            int32 array or tensor like `index`.
        """
        if index is not None and isinstance(self._numbers, range):
            return index
        if isinstance(index, int):
            return int(self._numbers[index])
        numbers = np.asarray(self._numbers, "int32")
        if index is None:
            return numbers
        return ops.take(ops.convert_to_tensor(numbers), index, axis=0)

    def _take_numbers(self, numbers):
        *own, self._next_number = numbers
        self._numbers = np.array(own, "int32")

    def _are_plain(self) -> bool:
        """Whether the tasks have the numbers that they have in a new context."""
        return isinstance(self._numbers, range) and (
            len(self._numbers) == self._next_number
        )

    def _draw_numbers(self, numbers):
        """What the tasks of some numbers need; see `draw()`."""
        width = self.input_spec.axes[-1]
        if isinstance(numbers, range):
            return self.draw(numbers, width)
        rows = [self.draw(range(each, each + 1), width) for each in map(int, numbers)]
        return None if rows[0] is None else np.concatenate(rows)

    def _set_row(self, index, number):
        """Gives a task the row of a number, or of `None` zeros."""
        if self.contexts is None:
            return
        bank = ops.convert_to_numpy(self.contexts).copy()
        bank[index] = 0 if number is None else self._draw_numbers([number])[0]
        self._replace_contexts(bank)

    def _take_seed(self, seed):
        """Goes on with the seed of a file: tasks that are added are drawn with it."""
        self.seed = seed

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "What a task costs depends on the width of the inputs: call or build "
                f"the context first. Received: {self.name}, which is not built"
            )

    def _add_contexts(self, rows):
        fixed_dtype = None if rows.dtype.kind == "f" else rows.dtype.name
        self.contexts = self.add_weight(
            name="contexts",
            shape=rows.shape,
            initializer=Initial(lambda _, dtype: ops.convert_to_tensor(rows, dtype)),
            dtype=None if self.learnable else fixed_dtype,
            autocast=False,
            trainable=self.learnable,
        )
        mark_task_rows(self.contexts)

    def _replace_contexts(self, rows):
        trainable = self.contexts.trainable
        replace_weight(self, self.contexts, lambda: self._add_contexts(rows))
        self.contexts.trainable = trainable

    def _map_kernel(self, transform, kernel, task):
        task = check_task(task, self.num_tasks, self.removed_tasks)
        kernel = ops.convert_to_tensor(kernel)
        if len(kernel.shape) != 2 or len(getattr(task, "shape", ())) != 0:
            raise ValueError(
                "A kernel of shape (M, units) is bound to one task. Received: kernel "
                f"of shape {tuple(kernel.shape)}, task={task}"
            )
        if not self.built:
            self.build((None, kernel.shape[0]))
        task = self.as_task(task)
        # C W = (W^T C^T)^T
        mapped = ops.transpose(transform(ops.transpose(kernel), task.index))
        return task.mask(mapped)
