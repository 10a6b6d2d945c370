import subprocess
import sys

import numpy as np
import pytest
from conftest import BACKEND
from keras import ops

from keras_psp.layers import PSPConv2D
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDepthwiseConv2D

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="which alone has them")


# Kernel size, strides, dilation rate, groups.
ARGUMENTS = (
    ((1, 1), (1, 1), (1, 1), 1),
    ((1, 1), (2, 3), (1, 1), 2),
    ((3, 2), (1, 1), (1, 1), 1),
    ((3, 2), (2, 3), (1, 1), 2),
    ((2, 3), (3, 1), (1, 1), 1),
    ((3, 2), (1, 1), (2, 3), 2),
)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_gradients_are_those_of_keras(arguments, padding):
    import jax

    from keras_psp._core.jax_branch import convolve

    size, strides, dilation, groups = arguments
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 8, 4)).astype("float32")
    kernel = rng.normal(size=(*size, 4 // groups, 6)).astype("float32")
    results = []
    for conv in (
        lambda x, kernel: convolve(x, kernel, strides, padding, dilation),
        lambda x, kernel: ops.conv(
            x, kernel, strides, padding, "channels_last", dilation
        ),
    ):
        y, pull_back = jax.vjp(conv, x, kernel)
        weights = np.random.default_rng(1).normal(size=y.shape).astype("float32")
        results.append((y, *pull_back(weights)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_branch_has_the_gradients_of_what_was_taken():
    import jax

    from keras_psp._core.backend import cond

    def loss(x, w, uniform):
        return ops.sum(cond(uniform, lambda: x * w * w, lambda: ops.sin(x)))

    x = np.arange(3.0, dtype="float32")
    for compile in (lambda f: f, jax.jit):
        gradients = compile(jax.grad(loss, (0, 1)))
        for taken, expected in (
            (True, (4 + 0 * x, 4 * x)),
            (False, (np.cos(x), 0 * x)),
        ):
            found = gradients(x, np.full(3, 2, "float32"), np.array(taken))
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
            np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    # For the gradients of each example, as in differential privacy.
    each = jax.vmap(jax.grad(loss), in_axes=(0, None, 0))
    found = each(x, np.float32(2), np.array([True, False, True]))
    np.testing.assert_allclose(found, [4, np.cos(1), 4], rtol=1e-6)


@pytest.mark.parametrize(
    "layer, expected",
    [
        (TaskBatchNormalization(3, affine_per_task=True), [1, 0, 0]),
        (TaskDepthwiseConv2D(3, num_tasks=3), [2, 0, 0]),
        (PSPConv2D(4, 1, num_tasks=3, base=True), [2, 0, 0]),
        (PSPConv2D(40, 1, num_tasks=3, base=True), [2, 1, 0]),
    ],
    ids=["normalization", "depthwise", "small kernels", "large kernels"],
)
def test_how_much_a_first_call_compiles(layer, expected):
    """Look-ups, branches and loops take the compiler longest."""
    import jax

    x, task = np.ones((4, 6, 6, 2), "float32"), np.array([0, 2, 1, 1], "int32")
    layer(x, task)
    traced = jax.jit(lambda x, task: layer(x, task)).trace(x, task)
    assert "FILL_OR_DROP" not in str(traced.jaxpr)  # The guard of Keras' look-up.
    program = traced.lower().as_text()
    names = ("call @_take", "stablehlo.case", "stablehlo.while")
    assert [program.count(name) for name in names] == expected


def test_the_first_model_of_a_process_is_compiled_once():
    """What JAX compiles for is not to change while it traces the first time."""
    program = """
import keras, keras_psp, numpy as np
traced = []
class Count(keras.layers.Layer):
    def call(self, x):
        traced.append(x)
        return x
x, task = keras.Input((2,), name="x"), keras.Input((), dtype="int32", name="task")
y = Count()(keras_psp.layers.PSPDense(2, num_tasks=2)(x, task))
model = keras_psp.models.TaskModel({"x": x, "task": task}, y)
traced.clear()
for _ in range(2):
    model.predict_on_batch({"x": np.ones((2, 2)), "task": np.array([0, 1])})
print(len(traced))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[-1] == "1"
