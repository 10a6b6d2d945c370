import keras
import layer_checks
import numpy as np
import pytest
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp.layers import PSPComplexDense


def make(**kwargs):
    kwargs = {"activation": "tanh", "bias_initializer": "normal", **kwargs}
    return PSPComplexDense(4, num_tasks=NUM_TASKS, **kwargs)


def make_binary(**kwargs):
    return make(context="binary", **kwargs)


def reference(layer, x, k):
    kernel = to_numpy(layer.kernel_real) + 1j * to_numpy(layer.kernel_imaginary)
    eye = np.eye(x.shape[-1], dtype="float32")
    x = x @ to_numpy(layer.context.bind_kernel(eye, k))
    real, imaginary = np.split(x, 2, axis=-1)
    y = (real + 1j * imaginary) @ kernel
    return np.tanh(np.concatenate([y.real, y.imag], axis=-1) + to_numpy(layer.bias))


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make, shape", [(make, (10, 3, 6)), (make_binary, (10, 6))])
def test_layer(make, shape, check):
    check(make, reference, shape)


def test_computes_with_complex_numbers():
    x, _ = draw((10, 6))
    layer = PSPComplexDense(4, num_tasks=NUM_TASKS, use_bias=False)
    y = to_numpy(layer(x, 2))
    cos, sin = to_numpy(layer.context.contexts)[2]
    z = (x[:, :3] + 1j * x[:, 3:]) * (cos + 1j * sin)
    z = z @ (to_numpy(layer.kernel_real) + 1j * to_numpy(layer.kernel_imaginary))
    np.testing.assert_allclose(y[:, :4] + 1j * y[:, 4:], z, atol=1e-5)


def test_saved_with_everything(tmp_path):
    x, task = draw((10, 6))
    layer = make(
        kernel_initializer=keras.initializers.RandomNormal(seed=1),
        kernel_regularizer="l2",
        bias_regularizer="l1",
        kernel_constraint="max_norm",
        bias_constraint="non_neg",
    )
    model = functional(layer, x.shape)
    assert len(model.losses) == 3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    inputs = {"image": x, "task": task}
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
    assert again.layers[-1].get_config() == layer.get_config()


def test_parts_of_the_kernel_are_independent_and_scaled():
    for initializer in (None, keras.initializers.GlorotUniform(seed=3)):
        layer = PSPComplexDense(200, num_tasks=2, kernel_initializer=initializer)
        layer.build((None, 600))
        parts = to_numpy(layer.kernel_real), to_numpy(layer.kernel_imaginary)
        correlation = np.corrcoef(parts[0].ravel(), parts[1].ravel())[0, 1]
        assert abs(correlation) < 0.02
        variance = (1 if initializer is None else 2) / (300 + 200)
        np.testing.assert_allclose([p.var() for p in parts], variance, rtol=0.05)


def test_an_initializer_may_be_a_function():
    layer = PSPComplexDense(
        2, num_tasks=2, kernel_initializer=lambda shape, dtype: np.ones(shape, dtype)
    )
    layer.build((None, 4))
    np.testing.assert_array_equal(to_numpy(layer.kernel_imaginary), np.ones((2, 2)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="must be even.*7"):
        make().build((None, 7))
    with pytest.raises(ValueError, match="units=0"):
        PSPComplexDense(0, num_tasks=2)
    with pytest.raises(ValueError, match="`num_tasks` must be given"):
        PSPComplexDense(2)
