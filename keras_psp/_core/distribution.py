"""What differs where a model is trained on several devices, or by several processes.

JAX spreads tensors over devices by layouts. TensorFlow runs a step in replicas under a
strategy. torch runs a process for each device.
"""

import contextlib
import copy
import functools
import sys
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_psp._core.private import layout_of
from keras_psp._core.private import own_strategy


def check_built_under_strategy(model: keras.Model) -> None:
    """Raises a `ValueError` if a model is older than the distribution it is used in."""
    backend = keras.backend.backend()
    if backend == "jax":
        current = keras.distribution.distribution()
        late = current is not None and any(
            layout_of(variable) is None for variable in model.variables
        )
    elif backend == "tensorflow":
        distribute = sys.modules["tensorflow"].distribute
        current = distribute.get_strategy() if distribute.has_strategy() else None
        late = current is not None and current is not own_strategy(model)
    else:
        return
    if late:
        raise ValueError(
            "A model must be built inside the scope of its distribution; build it "
            f"anew, and load its weights. Received: {model.name!r}, built before the "
            f"{type(current).__name__} that it is used in"
        )


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """Lets every device of JAX' take the whole of each batch.

    For what is measured on few examples: the devices need not divide their number.
    """
    current = keras.distribution.distribution()
    if current is None:
        yield
        return
    whole: Any = copy.copy(current)
    whole.get_data_layout = lambda shape: keras.distribution.TensorLayout(
        [None] * len(shape), current.device_mesh
    )
    with whole.scope():
        yield


def layout_like(variable: Any, shape: Any) -> Any:
    """Returns the layout of a tensor that says something of a variable's numbers.

    Args:
        variable: The `keras.Variable`.
        shape: The tensor's shape.

    Returns:
        A `keras.distribution.TensorLayout`, or `None` where there are none. It is the
        variable's own if the shape is. Otherwise the devices that share the variable
        share the tensor's last dimension, if they divide it.
    """
    layout, shape = layout_of(variable), tuple(shape)
    if layout is None or shape == tuple(variable.shape):
        return layout
    mesh = layout.device_mesh
    axes: list = [None] * len(shape)
    for axis in filter(None, layout.axes):
        if shape and shape[-1] % mesh.shape[list(mesh.axis_names).index(axis)] == 0:
            axes[-1] = axis
    return keras.distribution.TensorLayout(axes, mesh)


def mean_over_workers(
    model: keras.Model, arrays: list[np.ndarray], count: int
) -> list[np.ndarray]:
    """Returns the means of what each worker has measured on its own examples.

    Args:
        model: The model that the workers train.
        arrays: float32 arrays, of the same shapes in every worker.
        count: Integer, of how many examples this worker's arrays are the means.
    """
    sum_up = _sum_over_workers(model)
    if sum_up is None:
        return arrays
    total = sum_up(np.array(count, "float32"))
    return [sum_up(array * np.float32(count)) / total for array in arrays]


def sum_over_replicas(tensor: Any) -> Any:
    """Returns the sum of what all replicas, or processes, have for a tensor.

    It is called in a training step, and has gradients. JAX sums over devices anyway.
    """
    if keras.backend.backend() == "torch" and _has_processes():
        return _sum_over_processes().apply(tensor)
    replica = _replica()
    return tensor if replica is None else replica.all_reduce("SUM", tensor)


def sum_gradients(gradients: list) -> list:
    """Returns the gradients of the whole batch, where replicas have those of shares.

    torch's processes have averaged theirs already. Some gradients are `None`.
    """
    replica = _replica()
    if replica is None:
        return gradients
    # TensorFlow's may hold some rows alone.
    given = [keras.ops.convert_to_tensor(g) for g in gradients if g is not None]
    sums = iter(replica.all_reduce("SUM", given))
    return [None if g is None else next(sums) for g in gradients]


def count_replicas() -> int:
    """Returns how many of TensorFlow's replicas take the step under way together."""
    replica = _replica()
    return 1 if replica is None else replica.num_replicas_in_sync


def assign_in_replicas(variable: Any, value: Any) -> bool:
    """Sets what each of TensorFlow's replicas has of a variable to what it has found.

    TensorFlow wants to be told how to aggregate what replicas assign to a variable, and
    Keras tells it for no weight. Here all have found the same.

    Returns:
        Whether there are replicas. Otherwise nothing has been done.
    """
    replica = _replica()
    if replica is None:
        return False

    def update(strategy: Any, value: Any) -> None:
        strategy.extended.update(
            variable.value, lambda own, new: own.assign(new), args=(value,)
        )

    dtype = keras.backend.standardize_dtype(variable.dtype)
    replica.merge_call(update, args=(keras.ops.cast(value, dtype),))
    return True


def strategy_scope(model: keras.Model) -> Any:
    """Returns the scope of a model's strategy, in which its variables are assigned."""
    strategy = own_strategy(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


@functools.cache
def _sum_over_processes() -> Any:
    """Returns the sum over processes as a function that torch differentiates."""
    torch: Any = sys.modules["torch"]

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, tensor: Any) -> Any:
            total = tensor.clone()
            torch.distributed.all_reduce(total)
            return total

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            total = gradient.clone()
            torch.distributed.all_reduce(total)
            return total

    return Sum


def _replica() -> Any:
    """TensorFlow's context of one of several replicas, or `None`."""
    if keras.backend.backend() != "tensorflow":
        return None
    replica = sys.modules["tensorflow"].distribute.get_replica_context()
    return replica if replica and replica.num_replicas_in_sync > 1 else None


def _sum_over_workers(model: keras.Model) -> Any:
    """Returns a function that sums an array over all workers; `None` for one alone."""
    if keras.backend.backend() == "torch" and _has_processes():
        torch = sys.modules["torch"]

        def sum_up(array: np.ndarray) -> np.ndarray:
            tensor = torch.tensor(array)
            torch.distributed.all_reduce(tensor)
            return tensor.numpy()

        return sum_up
    strategy = own_strategy(model)
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or resolver.cluster_spec().num_tasks("worker") < 2:
        return None
    constant = sys.modules["tensorflow"].constant

    def sum_up_replicas(array: np.ndarray) -> np.ndarray:
        each = strategy.run(lambda: constant(array))
        return strategy.reduce("SUM", each, axis=None).numpy()

    return sum_up_replicas


def _has_processes() -> bool:
    """Whether this is one of torch's processes that train together."""
    distributed = sys.modules["torch"].distributed
    return distributed.is_available() and distributed.is_initialized()
