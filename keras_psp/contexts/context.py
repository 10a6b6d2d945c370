"""The interface of every context family."""

from numbers import Integral

import keras
import numpy as np
from keras import ops

from keras_psp.contexts.task_index import check_num_tasks
from keras_psp.contexts.task_index import check_task
from keras_psp.contexts.task_index import mask_unknown_tasks
from keras_psp.contexts.task_index import split_task


class Context(keras.layers.Layer):
    """Base class of the contexts: one orthogonal map `C_k` of the inputs per task.

    ```
    context(x, k) = x C_k
    ```

    To add a family, subclass it and write `build()`, which creates what the tasks
    need for inputs of `input_shape[-1]` numbers and calls `super().build()`, `bind()`
    and `unbind()`, which apply `C_k` and its transpose, and `numbers_per_task`.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Integer. Equal seeds give equal contexts, on every backend.
        learnable: Boolean, whether the contexts are trained. Defaults to `False`.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, ..., M)`.

    Output shape:
        The input's. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled graph.

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3.
    """

    def __init__(self, num_tasks, seed=0, learnable=False, **kwargs):
        super().__init__(**kwargs)
        self.num_tasks = check_num_tasks(num_tasks)
        if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
            raise ValueError(
                f"`seed` must be a non-negative integer. Received: seed={seed!r}"
            )
        self.seed = int(seed)
        self.learnable = learnable
        self.supports_masking = True

    def __call__(self, inputs, task, **kwargs):
        task = check_task(task, self.num_tasks)
        return super().__call__(inputs, task=task, **kwargs)

    def build(self, input_shape):
        self.input_spec = keras.InputSpec(axes={-1: input_shape[-1]})

    def call(self, inputs, task):
        index, known = split_task(task, self.num_tasks, inputs.shape)
        return mask_unknown_tasks(self.bind(inputs, index), known)

    def compute_output_shape(self, input_shape):
        return input_shape

    def bind(self, inputs, index):
        """Computes `x C_k` for indices that are known to be valid.

        Args:
            inputs: Float tensor of shape `(batch, ..., M)`.
            index: Integer, or int32 tensor of shape `()` or `(batch,)`.

        Returns:
            Tensor like `inputs`.
        """
        raise NotImplementedError

    def unbind(self, inputs, index):
        """Computes `x C_k^T`; arguments and result as for `bind()`."""
        raise NotImplementedError

    def bind_kernel(self, kernel, task):
        """Returns `C_k W`, the kernel that task k sees.

        Args:
            kernel: Float tensor of shape `(M, units)`.
            task: Integer, or scalar integer tensor.

        Returns:
            Tensor like `kernel`.
        """
        return self._map_kernel(self.unbind, kernel, task)

    def unbind_kernel(self, kernel, task):
        """Returns `C_k^T W`, the kernel that task k sees as `W`.

        Args:
            kernel: Float tensor of shape `(M, units)`.
            task: Integer, or scalar integer tensor.

        Returns:
            Tensor like `kernel`.
        """
        return self._map_kernel(self.bind, kernel, task)

    @property
    def numbers_per_task(self):
        """How many numbers one more task costs."""
        raise NotImplementedError

    @property
    def bits_per_task(self):
        """How many bits of memory one more task costs."""
        bits = sum(
            8 * np.dtype(v.dtype).itemsize * int(np.prod(v.shape)) for v in self.weights
        )
        return bits // self.num_tasks

    def quantize(self, mode=None, type_check=True, config=None):
        """Does nothing: `Model.quantize()` asks every layer, and signs are bytes."""

    def get_config(self):
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "seed": self.seed,
            "learnable": self.learnable,
        }

    def _map_kernel(self, transform, kernel, task):
        task = check_task(task, self.num_tasks)
        kernel = ops.convert_to_tensor(kernel)
        if len(kernel.shape) != 2 or len(getattr(task, "shape", ())) != 0:
            raise ValueError(
                "A kernel of shape (M, units) is bound to one task. Received: kernel "
                f"of shape {tuple(kernel.shape)}, task={task}"
            )
        if not self.built:
            self.build((None, kernel.shape[0]))
        index, known = split_task(task, self.num_tasks, (None,))
        # C W = (W^T C^T)^T
        mapped = ops.transpose(transform(ops.transpose(kernel), index))
        return mask_unknown_tasks(mapped, known)
