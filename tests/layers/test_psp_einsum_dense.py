import keras
import layer_checks
import numpy as np
import pytest
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import fill
from layer_checks import functional
from layer_checks import shares
from layer_checks import to_numpy

from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense

# What is summed over is d, or n and h; e has a product of its own for each.
EQUATIONS = {
    "projection": ("btd,dnh->btnh", (3, 2, 3), "nh", (10, 3, 6)),
    "output": ("btnh,nhd->btd", (3, 4), "d", (10, 3, 2, 3)),
    "swapped": ("bnht,hnd->btd", (3, 4), "d", (10, 2, 3, 3)),
    "own": ("bed,edh->beh", (2, 4), "eh", (10, 2, 6)),
    "left": ("...d,dh->...h", (4,), "h", (10, 3, 6)),
    "right": ("bd...,dh->bh...", (4, None), "h", (10, 6, 3)),
}


def make(name="projection", context="rotation", **kwargs):
    equation, output_shape, bias_axes, shape = EQUATIONS[name]
    kwargs = {"activation": "tanh", "bias_axes": bias_axes, **kwargs}
    layer = PSPEinsumDense(
        equation, output_shape, num_tasks=NUM_TASKS, context=context, **kwargs
    )
    return fill(layer, shape)


def make_base(**kwargs):
    return make(base=True, bias_per_task=True, **kwargs)


def make_low_rank(**kwargs):
    return make_base(rank=2, **kwargs)


def make_output(**kwargs):
    return make("output", context="permutation", bias_per_task=True, **kwargs)


def make_own(**kwargs):
    return make("own", context="binary", bias_axes=None, base=True, **kwargs)


def reference(layer, x, k):
    """With the inputs bound, dimension by dimension."""
    inputs, kernel, _ = layer.equation.replace("->", ",").split(",")
    matrix = to_numpy(layer.context.bind_kernel(np.eye(layer._width), k))
    rows = matrix @ to_numpy(layer.kernel_rows(to_numpy(layer.kernel)))
    kernel = to_numpy(layer.kernel_of_rows(rows))
    base, bias = shares(layer, k)
    return np.tanh(np.einsum(layer.equation, x, base + kernel) + bias)


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "make, name",
    [
        once(make_base, "projection"),
        (make_low_rank, "projection"),
        once(make_output, "output"),
        (make_own, "own"),
    ],
)
def test_layer(make, name, check):
    check(make, reference, EQUATIONS[name][-1])


@pytest.mark.parametrize("name", EQUATIONS)
def test_bound_inputs_are_a_bound_kernel(name):
    layer = make(name)
    x, task = draw(EQUATIONS[name][-1])
    expected = [reference(layer, x[i : i + 1], k)[0] for i, k in enumerate(task)]
    np.testing.assert_allclose(to_numpy(layer(x, task)), expected, atol=1e-5)
    for rank in (None, 1):
        if rank is not None and name == "own":
            continue
        layer = make(name, base=rank is None, bias_per_task=True, rank=rank)
        expected = [reference(layer, x[i : i + 1], k)[0] for i, k in enumerate(task)]
        np.testing.assert_allclose(to_numpy(layer(x, task)), expected, atol=1e-5)


@pytest.mark.parametrize("name", EQUATIONS)
def test_rows_are_what_the_product_is_made_of(name):
    layer = make(name, activation=None, bias_axes=None)
    x, _ = draw(EQUATIONS[name][-1])
    kernel = to_numpy(layer.kernel)
    rows = layer.kernel_rows(layer.kernel)
    np.testing.assert_array_equal(to_numpy(layer.kernel_of_rows(rows)), kernel)
    inputs = to_numpy(layer.input_rows(x))
    groups = inputs.shape[1]
    own = to_numpy(rows).reshape(inputs.shape[-1], groups, -1)
    y = np.einsum("ngi,igo->ngo", inputs, own)
    expected = np.einsum(layer.equation, x, kernel)
    np.testing.assert_allclose(np.sort(y.ravel()), np.sort(expected.ravel()), atol=1e-4)


def test_it_is_the_dense_layer_of_the_same_product():
    x, task = draw((10, 3, 6))
    einsum = make("left", bias_axes="h")
    dense = PSPDense(4, context=einsum.context, activation="tanh")
    dense.build((10, 3, 6))
    dense.kernel.assign(to_numpy(einsum.kernel))
    dense.bias.assign(to_numpy(einsum.bias))
    np.testing.assert_allclose(
        to_numpy(dense(x, task)), to_numpy(einsum(x, task)), atol=1e-6
    )


def test_config_is_that_of_the_keras_layer_and_ours():
    plain = keras.layers.EinsumDense("bd,dh->bh", 4).get_config()
    layer = PSPEinsumDense("bd,dh->bh", 4, num_tasks=3)
    assert set(layer.get_config()) == set(plain) | {"num_tasks", "context"}


def test_file(tmp_path):
    layer, (x, task) = make_base(), draw((10, 3, 6))
    model = functional(layer, (10, 3, 6))
    expected = to_numpy(model({"image": x, "task": task}))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    y = to_numpy(loaded({"image": x, "task": task}))
    np.testing.assert_array_equal(y, expected)


def test_bad_input():
    for equation, shape in (("bd,bh->dh", (4,)), ("bd,hk->bdhk", (6, 2, 3))):
        layer = PSPEinsumDense(equation, shape, num_tasks=3)
        with pytest.raises(ValueError, match="sum over dimensions of the inputs"):
            layer.build((10, 6))
    with pytest.raises(ValueError, match="can have no `rank`.*bed,edh->beh.*rank=2"):
        make("own", rank=2)
    layer = PSPEinsumDense("btd,tdh->bh", 4, num_tasks=3)
    with pytest.raises(ValueError, match="summed over must be known"):
        layer.build((10, None, 6))
