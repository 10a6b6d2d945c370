"""Batch normalization with statistics of its own for each task."""

import math
from typing import Any

import keras
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.backend import take_rows_of
from keras_psp._core.distribution import sum_over_replicas
from keras_psp._core.task import Task
from keras_psp.layers._task_rows import TaskRows


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskBatchNormalization(TaskRows, keras.layers.BatchNormalization):
    """A `keras.layers.BatchNormalization` with statistics of its own for each task.

    ```
    y = gamma (x - mean_k) / sqrt(variance_k + epsilon) + beta
    ```

    In training, mean and variance are those of the batch's examples of the same task;
    and only the running statistics of tasks in the batch are updated. Statistics
    shared by all tasks would follow the last one, and with them the answers to all
    earlier ones would change.

    A task of which a batch has a single value (one example, without other dimensions
    than the channels') has no variance there: its running statistics are used, and
    left as they are.

    Args:
        num_tasks: Positive integer, the number of tasks.
        affine_per_task: Boolean, whether each task has a `gamma` and a `beta` of its
            own too. Train them with `keras_psp.optimizers.PerTask`: a plain optimizer
            with momentum also moves those of tasks without an example in the batch.
        synchronized: Boolean, whether the batch is that of all replicas (TensorFlow)
            or processes (torch) that train the layer together. On JAX a batch that is
            spread over devices always counts as one. Defaults to `False`.
        **kwargs: `keras.layers.BatchNormalization` arguments, but for `renorm`.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.
        training: Boolean, whether to normalize with the batch's statistics (and to
            update the running ones) or with the running ones.
        mask: Boolean tensor, of the inputs' shape without the last dimension; what is
            `False` there is left out of the statistics.

    Input shape:
        `(batch, ...)`.

    Output shape:
        The input's. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled or exported
        graph; they have no part in any statistics.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskBatchNormalization(num_tasks=2, momentum=0.5)
    >>> x = keras.ops.array([[0.0], [2.0], [6.0], [8.0]])
    >>> y = layer(x, [0, 0, 1, 1], training=True)
    >>> keras.ops.convert_to_numpy(y)[:, 0].round().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    >>> keras.ops.convert_to_numpy(layer.moving_mean)[:, 0].tolist()
    [0.5, 3.5]

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), algorithm 1, task
        by task.
    """

    def __init__(
        self,
        num_tasks: int,
        affine_per_task: bool = False,
        synchronized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # Keras' own synchronizes on TensorFlow alone.
        self.synchronized = synchronized
        if self.renorm:
            raise ValueError(
                "Statistics of each task are not renormalized. Received: renorm=True"
            )
        self.affine_per_task = affine_per_task
        self.set_num_tasks(num_tasks)

    def build(self, input_shape: Any) -> None:
        rank = len(input_shape)
        if self.axis % rank == 0 or not -rank <= self.axis < rank:
            raise ValueError(
                "`axis` must be one of the inputs' dimensions, and not the batch's. "
                f"Received: axis={self.axis}, input_shape={input_shape}"
            )
        width = input_shape[self.axis]
        if width is None:
            raise ValueError(
                f"The dimension of `axis` must be known. Received: axis={self.axis}, "
                f"input_shape={input_shape}"
            )
        add = self.add_rows if self.affine_per_task else self._add_shared
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                add(
                    name,
                    (width,),
                    getattr(self, f"{name}_initializer"),
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                    autocast=False,
                )
        fixed: dict[str, Any] = {"trainable": False, "autocast": False}
        self.add_rows("moving_mean", (width,), self.moving_mean_initializer, **fixed)
        self.add_rows(
            "moving_variance", (width,), self.moving_variance_initializer, **fixed
        )
        self.input_spec = keras.InputSpec(ndim=rank, axes={self.axis: width})

    # Keras fills in `mask` if there is one tensor, `inputs_mask` if there are more.
    def call(
        self,
        inputs: Any,
        task: Any = None,
        training: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        task = self.parse_task(task, inputs)
        index = task.index
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        means, variances = (
            ops.cast(rows, x.dtype) for rows in (self.moving_mean, self.moving_variance)
        )
        if training and self.trainable:
            known = task.known
            if task.is_one:
                index = ops.zeros(ops.shape(x)[:1], "int32") + index
                if known is not None:
                    known = ops.logical_and(ops.ones_like(index, "bool"), known)
            if task.counted is not None:
                counts = ops.logical_and(ops.ones_like(index, "bool"), task.counted)
                known = counts if known is None else ops.logical_and(known, counts)
            parsed = task if task.in_blocks else Task.of_index(index, self.num_tasks)
            means, variances = self._update(x, parsed, known, mask, means, variances)
        affine = [
            ops.cast(getattr(self, name), x.dtype)
            for name, wanted in (("gamma", self.scale), ("beta", self.center))
            if wanted
        ]
        if self.affine_per_task:
            mean, variance, *affine = take_rows_of([means, variances, *affine], index)
        else:
            mean, variance = take_rows_of([means, variances], index)
        scale = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale = scale * affine[0]
        offset = -mean * scale
        if self.center:
            offset = offset + affine[-1]
        shape = [1] * len(x.shape)
        shape[self.axis] = x.shape[self.axis]
        if len(scale.shape) == 2:
            shape[0] = -1
        outputs = x * ops.reshape(scale, shape) + ops.reshape(offset, shape)
        return task.mask(ops.cast(outputs, self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "affine_per_task": self.affine_per_task}

    def _add_shared(self, name, *args, **kwargs):
        setattr(self, name, self.add_weight(*args, name=name, **kwargs))

    def _update(self, x, task, known, mask, means, variances):
        """Updates the running statistics, and returns those to normalize with."""
        mean, variance, count = self._moments_of_examples(x, mask)
        if known is not None:
            # What is no task may hold anything, NaN too: not to be multiplied with 0.
            count = ops.where(known, count, 0.0)
            mean, variance = (
                ops.where(ops.expand_dims(known, 1), value, 0.0)
                for value in (mean, variance)
            )
        count = ops.expand_dims(count, 1)

        def sum_by_task(values):
            total = task.sum_by_task(values)
            return sum_over_replicas(total) if self.synchronized else total

        sums = sum_by_task(ops.concatenate([count, count * mean], axis=1))
        total = sums[:, :1]
        divisor = ops.maximum(total, 1.0)
        task_mean = sums[:, 1:] / divisor
        # The variance within the examples, and that of their means.
        apart = ops.square(mean - take_rows(task_mean, task.index))
        task_variance = sum_by_task(count * (variance + apart)) / divisor
        present = total > 1.0
        for weight, new in (
            (self.moving_mean, task_mean),
            (self.moving_variance, task_variance),
        ):
            old, new = ops.convert_to_tensor(weight), ops.cast(new, weight.dtype)
            moved = old * self.momentum + new * (1.0 - self.momentum)
            weight.assign(ops.where(present, moved, old))
        return (
            ops.where(present, task_mean, means),
            ops.where(present, task_variance, variances),
        )

    def _moments_of_examples(self, x, mask):
        """Each example's mean and variance, `(batch, channels)`, and number of values.

        Raises a `ValueError` if the whole batch is known to hold a single value.
        """
        rank = len(x.shape)
        axes = [axis for axis in range(1, rank) if axis != self.axis % rank]
        sizes = [ops.shape(x)[axis] for axis in (0, *axes)]
        if all(isinstance(size, int) and size == 1 for size in sizes):
            raise ValueError(
                "In training there must be more than one value of each channel to "
                f"have a variance. Received: inputs of shape {tuple(x.shape)}"
            )
        if mask is not None:
            if len(mask.shape) != rank - 1 or self.axis % rank != rank - 1:
                raise ValueError(
                    "A mask must be one dimension less than the inputs, which must "
                    "be normalized over their last. Received: "
                    f"mask.shape={mask.shape}, inputs.shape={x.shape}, axis={self.axis}"
                )
            mask = ops.expand_dims(ops.cast(mask, "bool"), -1)
            count = ops.sum(ops.cast(mask, x.dtype), axis=(*axes, rank - 1))
            divisor = ops.expand_dims(ops.maximum(count, 1.0), 1)
            mean = ops.sum(ops.where(mask, x, 0.0), axis=axes, keepdims=True)
            mean = mean / ops.reshape(divisor, (-1,) + (1,) * (rank - 1))
            apart = ops.where(mask, ops.square(x - mean), 0.0)
            variance = ops.sum(apart, axis=axes) / divisor
            return ops.squeeze(mean, axes) if axes else mean, variance, count
        count = ops.cast(ops.convert_to_tensor(math.prod(sizes[1:])), x.dtype)
        count = count + ops.zeros(sizes[:1], x.dtype)
        if not axes:
            return x, ops.zeros_like(x), count
        return *ops.moments(x, axes), count
