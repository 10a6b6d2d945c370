import keras
import layer_checks
import numpy as np
import pytest
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import to_numpy

from keras_psp.layers import TaskLayerNormalization
from keras_psp.layers import TaskRMSNormalization

SHAPES = ((10, 6), (10, 3, 6))


def make(kind=TaskLayerNormalization, **kwargs):
    layer = kind(NUM_TASKS, **kwargs)
    layer.build((None, 6))
    rng = np.random.default_rng(2)  # All tasks start alike.
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return layer


def make_without_scale(**kwargs):
    return make(scale=False, **kwargs)


def make_rms(**kwargs):
    return make(TaskRMSNormalization, **kwargs)


def reference(layer, x, k):
    if isinstance(layer, TaskRMSNormalization):
        y = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + layer.epsilon)
        return y * to_numpy(layer.scale)[k]
    centred = x - x.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + layer.epsilon)
    y = y * to_numpy(layer.gamma)[k] if layer.scale else y
    return y + to_numpy(layer.beta)[k]


CASES = [once(make, SHAPES[0]), (make, SHAPES[1]), (make_without_scale, SHAPES[0])]
CASES += [once(make_rms, SHAPES[0]), (make_rms, SHAPES[1])]


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make, shape", CASES)
def test_layer(make, shape, check):
    check(make, reference, shape)


@pytest.mark.parametrize(
    "make, plain",
    [
        (make, keras.layers.LayerNormalization),
        (make_rms, keras.layers.RMSNormalization),
    ],
)
def test_it_is_the_keras_layer_for_one_task(make, plain):
    x, _ = draw((10, 3, 6))
    layer, plain = make(), plain()
    plain.build((10, 3, 6))
    plain.set_weights([to_numpy(weight)[2] for weight in layer.weights])
    np.testing.assert_allclose(to_numpy(layer(x, 2)), to_numpy(plain(x)), atol=1e-6)


def test_tasks_are_added():
    layer, (x, task) = make(), draw((10, 6))
    before = to_numpy(layer(x, task))
    layer.add_tasks(2)
    np.testing.assert_array_equal(to_numpy(layer(x, task)), before)
    np.testing.assert_array_equal(to_numpy(layer.gamma)[NUM_TASKS:], 1)


def test_bad_input():
    for axis in (1, [-2, -1]):
        for kind in (TaskLayerNormalization, TaskRMSNormalization):
            with pytest.raises(ValueError, match="along the last dimension"):
                kind(3, axis=axis)
    with (
        pytest.warns(UserWarning, match="deprecated"),
        pytest.raises(ValueError, match="rms_scaling=True"),
    ):
        TaskLayerNormalization(3, rms_scaling=True)
