"""The one module that knows the backends apart, with `jax_branch` for JAX alone."""

import contextlib
import contextvars
import importlib
import sys

import keras
import numpy as np
from keras import ops

from keras_psp._core import private

_branches = contextvars.ContextVar("branches", default=True)
_may_use_xla = contextvars.ContextVar("may_use_xla", default=True)


@contextlib.contextmanager
def without_branches():
    """Traces what computes batches of one task as it does others, without a branch."""
    token = _branches.set(False)
    try:
        yield
    finally:
        _branches.reset(token)


def outside_functions():
    """Returns a scope in which variables are made as if nothing was being traced.

    XLA compiles no `tf.function` that makes variables of the values of others.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    return sys.modules["tensorflow"].init_scope()


@contextlib.contextmanager
def compiled_with(xla):
    """Says whether XLA compiles what is traced in this scope, which nobody else tells.

    Gradients that XLA accepts take longer on TensorFlow.
    """
    token = _may_use_xla.set(xla)
    try:
        yield
    finally:
        _may_use_xla.reset(token)


def is_readable(task):
    """Whether the values of `task` can be read now, without waiting for a device."""
    if isinstance(task, keras.KerasTensor):
        return False
    if not ops.is_tensor(task):  # Python's numbers and lists, NumPy's arrays.
        return True
    # Each backend has its own kind of tensor that stands for a value to come. All
    # three are in `sys.modules` if they made it.
    backend = keras.backend.backend()
    if backend == "jax":
        return not isinstance(task, sys.modules["jax"].core.Tracer)
    if backend == "torch":
        # Reading from a GPU would stall it at every layer of every step.
        return not is_on_gpu(task) and not _is_traced()
    return hasattr(task, "numpy")


def is_on_gpu(tensor):
    """Whether a tensor of torch's is where reading it takes waiting."""
    return tensor.device.type != "cpu"


def remember_source(index, task):
    """Notes which `task` an index was made of; see `holds_one_task()`."""
    if keras.backend.backend() == "torch" and index is not task:
        index.keras_psp_source = task


def holds_one_task(index, known=None):
    """Returns a boolean (tensor), whether all of `index` are one task.

    Tasks outside the range have been clipped to it, and differ from those that `known`
    says have not.

    Or `None` where the answer decides nothing at run time: on torch while it compiles,
    exports or traces a model, where a tensor has only a shape, and in
    `without_branches()`. On a GPU torch must wait for the answer: once for each `task`
    that a model is given, however many layers ask.
    """
    if keras.backend.backend() == "torch":
        if _is_traced() or index.is_meta:
            return None
        if is_on_gpu(index):
            return _read_once(getattr(index, "keras_psp_source", None))
    if not _branches.get():  # After torch's part: its compiler cannot read this.
        return None
    if known is None:
        return _all_equal(index)
    return ops.logical_and(_all_equal(index), _all_equal(known))


def _all_equal(index):
    return ops.all(ops.equal(index, index[:1]))


def _read_once(task):
    if task is None:
        return None
    version, answer = getattr(task, "keras_psp_one_task", (None, None))
    written = private.count_writes(task)
    if version != written:  # Or it has been written to since.
        answer = bool(_all_equal(task))
        task.keras_psp_one_task = written, answer
    return answer


def is_compiling_torch():
    """Whether torch traces a function now, for `torch.compile` or `torch.export`."""
    return (
        keras.backend.backend() == "torch"
        and sys.modules["torch"].compiler.is_compiling()
    )


def _is_traced():
    """Whether torch records a program, from tensors whose values are only a sample.

    `torch.jit.trace()` and Keras' exports to ONNX and OpenVINO run the model on real
    tensors: what is read from the sample's task would be the task of all requests.
    """
    torch = sys.modules["torch"]
    return (
        is_compiling_torch() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
    )


def cond(uniform, one, mixed):
    """Returns `one()` where `uniform` is true, else `mixed()`, which is far dearer."""
    if keras.backend.backend() == "jax":
        from keras_psp._core import jax_branch

        return jax_branch.cond(uniform, one, mixed)
    if keras.backend.backend() == "tensorflow":
        from keras_psp._core import tensorflow_branch

        if _may_use_xla.get():
            return tensorflow_branch.cond(uniform, one, mixed)
    return ops.cond(uniform, one, mixed)


def branches_return_any():
    """Whether `cond()` may return anything, which need not be known before.

    torch calls one of the functions, and makes no graph of both.
    """
    return keras.backend.backend() == "torch"


def convolve(inputs, kernel, strides, padding, data_format, dilation_rate):
    """Keras' `ops.conv()`, for use inside `cond()`."""
    if keras.backend.backend() == "jax":
        from keras_psp._core import jax_branch

        if sys.modules["jax"].default_backend() == "cpu":
            if data_format == "channels_first":
                inputs = ops.moveaxis(inputs, 1, -1)
            outputs = jax_branch.convolve(
                inputs, kernel, strides, padding, dilation_rate
            )
            if data_format == "channels_first":
                outputs = ops.moveaxis(outputs, -1, 1)
            return outputs
    return ops.conv(inputs, kernel, strides, padding, data_format, dilation_rate)


def depthwise_convolve(inputs, kernel, strides, padding, data_format, dilation_rate):
    """Keras' `ops.depthwise_conv()`, for use inside `cond()`."""
    arguments = strides, padding, data_format, dilation_rate
    if keras.backend.backend() == "jax":
        # A convolution with as many groups as there are channels.
        *size, channels, multiplier = kernel.shape
        kernel = ops.reshape(kernel, (*size, 1, channels * multiplier))
        return convolve(inputs, kernel, *arguments)
    return ops.depthwise_conv(inputs, kernel, *arguments)


def computes_by_products():
    """Whether products are the fastest convolutions in depth, and of one place.

    They are on a CPU of JAX', whose own convolution in groups takes far longer. XLA
    also needs less time to compile a product than a branch or a loop.
    """
    jax = keras.backend.backend() == "jax"
    return jax and sys.modules["jax"].default_backend() == "cpu"


def is_worth_mapping(inputs):
    """Whether `map_examples()` may be faster than what computes for all at once.

    On a CPU: other devices are idle while they compute for one example.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return sys.modules["jax"].default_backend() == "cpu"
    if backend == "torch":
        return not is_on_gpu(inputs)
    return not sys.modules["tensorflow"].config.list_physical_devices("GPU")


def map_examples(function, inputs, kernels, index):
    """Returns what a function gives for examples each with the kernel of its task.

    Args:
        function: Function of inputs `(n, ...)` and of the kernel for all of them;
            returns as many outputs.
        inputs: Tensor of shape `(batch, ...)`.
        kernels: Tensor of shape `(num_tasks, ...)`.
        index: int32 tensor of shape `(batch,)`, the tasks.

    Returns:
        Tensor of shape `(batch, ...)`.
    """
    if keras.backend.backend() != "torch":  # A graph must know n: it is 1.

        def one(example):
            inputs, task = example
            return function(inputs[None], take_rows(kernels, task))[0]

        return ops.map(one, (inputs, index))
    torch = sys.modules["torch"]
    order = torch.argsort(index)
    tasks, counts = torch.unique_consecutive(index[order], return_counts=True)
    shares = torch.split(inputs[order], counts.tolist())
    outputs = map(function, shares, kernels[tasks])
    return torch.cat(list(outputs))[torch.argsort(order)]


def take_rows(bank, index):
    """Returns rows of a bank; on TensorFlow with a dense gradient.

    TensorFlow's own is sparse, with a slice for each example. Keras' optimizers square
    each slice apart, so that Adam takes other steps than on JAX and torch where a row
    has several examples.

    Args:
        bank: Tensor or variable of shape `(num_tasks, ...)`.
        index: Integer, or int32 tensor of shape `(...)`, in `[0, num_tasks)`.

    Returns:
        Tensor of the shape of `index`, followed by that of a row.
    """
    if keras.backend.backend() == "tensorflow":
        # The gradient of a reshape is dense. Unlike a gradient of one's own, it
        # leaves nothing in exported programs.
        bank = ops.reshape(bank, bank.shape)
    if keras.backend.backend() == "torch" and isinstance(index, int):
        return ops.convert_to_tensor(bank)[index]  # Without Keras' checks, a view.
    if keras.backend.backend() == "jax":
        # Keras' own also takes negative numbers, and fills in what is outside. XLA
        # needs twice as long to compile that.
        bank = ops.convert_to_tensor(bank)
        return sys.modules["jax"].numpy.take(bank, index, axis=0, mode="clip")
    return ops.take(bank, index, axis=0)


def take_rows_of(banks, index):
    """Returns the same rows of several banks of one shape, a list.

    JAX takes them together, for XLA compiles each look-up and each gradient of one; but
    not if there are more tasks than examples, where the banks are large.

    Args:
        banks: Tensors or variables of shape `(num_tasks, ...)` and of one dtype.
        index: Integer, or int32 tensor of shape `()` or `(n,)`, in `[0, num_tasks)`.
    """
    shape = getattr(index, "shape", ())
    if (
        keras.backend.backend() == "jax"
        and len(shape) == 1
        and isinstance(shape[0], int)  # Or a symbol, in an export.
        and shape[0] >= banks[0].shape[0]
    ):
        return ops.unstack(take_rows(ops.stack(banks, axis=1), index), axis=1)
    return [take_rows(bank, index) for bank in banks]


def reshape(x, shape):
    """Keras' `ops.reshape()` to a shape of integers, quicker on torch.

    Keras' own walks through its arguments first, for longer than a small layer takes.
    """
    if keras.backend.backend() == "torch" and not isinstance(x, keras.KerasTensor):
        return ops.convert_to_tensor(x).reshape(shape)
    return ops.reshape(x, shape)


def transpose(x, order):
    """Keras' `ops.transpose()`, quicker on torch; see `reshape()`."""
    if keras.backend.backend() == "torch" and not isinstance(x, keras.KerasTensor):
        return ops.convert_to_tensor(x).permute(order)
    return ops.transpose(x, order)


def multiply_add(x, y, z):
    """Returns `x * y + z`; on torch in one pass, without a tensor between.

    Args:
        x: Tensor.
        y: Tensor that broadcasts against `x`.
        z: Tensor like `x`.
    """
    if keras.backend.backend() == "torch":
        x, y, z = map(ops.convert_to_tensor, (x, y, z))
        return sys.modules["torch"].addcmul(z, x, y)
    return ops.add(ops.multiply(x, y), z)


def gather_last(inputs, order):
    """Takes, from the last dimension of `inputs`, the elements numbered by `order`.

    Args:
        inputs: Tensor of shape `(..., M)`.
        order: int32 tensor of the same shape, in [0, M).

    Returns:
        Tensor like `inputs`.
    """
    # Keras' own first looks for negative numbers, which takes far longer.
    if keras.backend.backend() == "torch":
        return sys.modules["torch"].gather(inputs, -1, order.long())
    if keras.backend.backend() == "tensorflow":
        tensorflow = sys.modules["tensorflow"]
        return tensorflow.gather(inputs, order, batch_dims=len(order.shape) - 1)
    return ops.take_along_axis(inputs, order, axis=-1)


def to_numpy(tensor):
    """Returns the values of a tensor that can be read, as a NumPy array."""
    if isinstance(tensor, np.ndarray):
        return tensor
    return np.asarray(ops.convert_to_numpy(tensor))


def current_graph():
    """Returns what is being traced now, or `None` where tensors are computed at once.

    Known on TensorFlow, whose graphs would keep what a scope outside of them says.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    tensorflow = sys.modules["tensorflow"]
    if tensorflow.executing_eagerly():
        return None
    return private.function_graph(tensorflow.compat.v1.get_default_graph())


def current_trace():
    """Returns what is equal in two calls, unless one is in a loop or a map around it.

    Loops of torch are Python's own, and cannot be told.
    """
    if keras.backend.backend() == "jax":
        core = importlib.import_module("jax.extend.core")
        return core.get_opaque_trace_state()
    if keras.backend.backend() == "tensorflow":
        tensorflow = sys.modules["tensorflow"]
        # Where `tf.vectorized_map()` stands in a graph it makes no other one.
        maps = tensorflow.get_current_name_scope().count("loop_body")
        return id(tensorflow.compat.v1.get_default_graph()), maps
    return private.map_level()


def gradients_under_way():
    """Returns what identifies the gradients that torch computes now, or `None`.

    The other backends compute them in what they trace.
    """
    if keras.backend.backend() != "torch" or is_compiling_torch():
        return None
    return private.gradients_under_way()


def trace_for(value):
    """Returns a context in which JAX uses only what it has traced for `value`.

    Of a tensor, that is nothing: a function that JAX has traced before, such as a
    checkpoint of a layer, would still hold the tensor of that time.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    if ops.is_tensor(value) or isinstance(value, keras.KerasTensor):
        return _trace_context(object())
    key = (value.shape, value.tobytes()) if hasattr(value, "shape") else value
    return _trace_context(key)


# JAX compiles all anew once there is another one: it must not come while it traces.
if keras.backend.backend() == "jax":
    _trace_context = private.trace_context()


def travelling(value, read, inputs, tasks):
    """Returns a value that is known now, as data of the function that is being traced.

    Args:
        value: Integer, or NumPy array of integers.
        read: Function that returns the value at another time.
        inputs: Tensor of shape `(batch, ...)`, for which the value is.
        tasks: What `read()` checks the value by.

    Returns:
        `value`; on TensorFlow, while it traces, an int32 tensor of shape `(batch,)`.
    """
    graph = current_graph()
    if graph is None:
        return value
    tensorflow = sys.modules["tensorflow"]

    def closure():
        # One for the whole batch is as good as an index for each example.
        now = tensorflow.convert_to_tensor(read(), "int32")
        return tensorflow.reshape(now, (-1,))

    spec = tensorflow.TensorSpec((None,), "int32")
    index = private.value_at_call(graph, closure, spec, f"keras_psp.task.{tasks}")
    return index if inputs is None else ops.broadcast_to(index, ops.shape(inputs)[:1])


def gradient(function, x):
    """Returns the gradient of a scalar function of the float tensor `x`.

    Zeros if the function does not depend on it.
    """
    if keras.backend.backend() == "jax":
        return sys.modules["jax"].grad(function)(x)
    if keras.backend.backend() == "torch":
        torch = sys.modules["torch"]
        with torch.enable_grad():  # Keras predicts without.
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x), x, materialize_grads=True)[0]
    with sys.modules["tensorflow"].GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x, unconnected_gradients="zero")
