import keras
import layer_checks
import numpy as np
import pytest
from conftest import BACKEND
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp.layers import TaskBatchNormalization

SHAPES = ((15, 4), (15, 2, 3, 4))
# It does change weights that are not trained by the optimizer.
CHECKS = [
    check
    for check in layer_checks.CHECKS
    if check is not layer_checks.one_step_changes_trainable_weights_alone
]


def make(**kwargs):
    """With statistics, scales and offsets of no particular value."""
    layer = TaskBatchNormalization(NUM_TASKS, **{"momentum": 0.7, **kwargs})
    layer.build((None, 4) if layer.axis == -1 else (None, 4, None, None))
    rng = np.random.default_rng(2)
    layer.set_weights([rng.uniform(0.5, 2, size=w.shape) for w in layer.weights])
    return layer


def make_affine(**kwargs):
    return make(affine_per_task=True, **kwargs)


def make_bare(**kwargs):
    return make(center=False, scale=False, **kwargs)


MAKERS = (make, make_affine, make_bare)


def build(make, shape, **kwargs):
    layer = make(**kwargs)
    values = layer.get_weights()
    again = type(layer).from_config(layer.get_config())
    again.build((None, *shape[1:]))
    again.set_weights(values)
    return again


def parameters(layer, k):
    """gamma, beta, moving mean and moving variance of task k."""
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        weight = getattr(layer, name)
        if weight is None:
            yield 1.0 if name == "gamma" else 0.0
        else:
            weight = to_numpy(weight)
            yield weight[k] if weight.ndim == 2 else weight


def reference(layer, x, k):
    gamma, beta, mean, variance = parameters(layer, k)
    return gamma * (x - mean) / np.sqrt(variance + layer.epsilon) + beta


def trained(layer, x, task, mask=None):
    """Outputs, moving means and variances of a training step, in NumPy."""
    y, means, variances = np.zeros_like(x), [], []
    for k in range(layer.num_tasks):
        gamma, beta, mean, variance = parameters(layer, k)
        mine = task == k
        values = x[mine] if mask is None else x[mine][mask[mine]]
        values = values.reshape(-1, x.shape[-1])
        batch_mean, batch_variance = mean, variance
        if len(values) > 1:
            batch_mean, batch_variance = values.mean(axis=0), values.var(axis=0)
            m = layer.momentum
            mean = m * mean + (1 - m) * batch_mean
            variance = m * variance + (1 - m) * batch_variance
        scale = gamma / np.sqrt(batch_variance + layer.epsilon)
        y[mine] = (x[mine] - batch_mean) * scale + beta
        means.append(mean)
        variances.append(variance)
    return y, np.array(means), np.array(variances)


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "make, shape", [(make, SHAPES[1]), (make_affine, SHAPES[0]), (make_bare, SHAPES[1])]
)
def test_layer(make, shape, check):
    check(lambda **kwargs: build(make, shape, **kwargs), reference, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", MAKERS)
def test_training_equals_reference(make, shape):
    x, task = draw(shape)
    for given in (task, np.where(task > 2, 0, task), np.full_like(task, 3)):
        layer = build(make, shape)
        expected = trained(layer, x, given)
        before = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
        before = [np.array(rows) for rows in before]
        found = layer(x, given, training=True), layer.moving_mean, layer.moving_variance
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(to_numpy(a), b, rtol=1e-5, atol=1e-5)
        absent = ~np.isin(np.arange(NUM_TASKS), given)
        for a, b in zip(found[1:], before, strict=True):
            np.testing.assert_array_equal(to_numpy(a)[absent], b[absent])


def test_one_task_is_batch_normalization():
    x, _ = draw(SHAPES[1])
    for axis, data in ((-1, x), (1, np.ascontiguousarray(np.moveaxis(x, -1, 1)))):
        for task in (2, np.full(len(x), 2)):
            layer = TaskBatchNormalization(NUM_TASKS, axis=axis, momentum=0.7)
            plain = keras.layers.BatchNormalization(axis=axis, momentum=0.7)
            for _ in range(2):
                for training in (True, False):
                    np.testing.assert_allclose(
                        to_numpy(layer(data, task, training=training)),
                        to_numpy(plain(data, training=training)),
                        rtol=1e-5,
                        atol=1e-5,
                    )
            for name in ("moving_mean", "moving_variance"):
                np.testing.assert_allclose(
                    to_numpy(getattr(layer, name))[2],
                    to_numpy(getattr(plain, name)),
                    rtol=1e-5,
                    atol=1e-6,
                )


@pytest.mark.parametrize("make", [make, make_affine])
def test_compiled_training_equals_reference(make):
    x, task = draw(SHAPES[1])
    task[task > 2] = 0
    layer = build(make, x.shape)
    y, means, variances = trained(layer, x, task)
    model = functional(layer, x.shape)
    target = np.random.default_rng(3).normal(size=x.shape).astype("float32")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.train_on_batch({"image": x, "task": task}, target)
    np.testing.assert_allclose(float(logs), ((y - target) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_mean), means, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variances, rtol=1e-5)


def test_one_index_for_the_whole_batch_compiled():
    x, task = draw(SHAPES[1])
    task[:] = 3
    layer = build(make, x.shape)
    _, means, variances = trained(layer, x, task)
    image = keras.Input(x.shape[1:], name="image")
    index = keras.Input((), dtype="int32", name="task")
    model = keras.Model({"image": image, "task": index}, layer(image, index[0]))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch({"image": x, "task": task}, np.zeros_like(x))
    np.testing.assert_allclose(to_numpy(layer.moving_mean), means, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variances, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_finite_differences(shape):
    x, task = draw(shape)
    layer = build(make, shape)
    image = keras.Input(shape[1:], name="image")
    index = keras.Input((), dtype="int32", name="task")
    below = keras.layers.Dense(4, use_bias=False)
    model = keras.Model({"image": image, "task": index}, layer(below(image), index))
    target = np.random.default_rng(3).normal(size=x.shape).astype("float32")
    kernel = to_numpy(below.kernel).astype("float64").copy()

    def loss(kernel):
        y, _, _ = trained(layer, x.astype("float64") @ kernel, task)
        return ((y - target) ** 2).mean()

    expected = np.zeros_like(kernel)
    for position in np.ndindex(*kernel.shape):
        shift = np.zeros_like(kernel)
        shift[position] = 1e-4
        expected[position] = (loss(kernel + shift) - loss(kernel - shift)) / 2e-4
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch({"image": x, "task": task}, target)
    gradient = kernel - to_numpy(below.kernel)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_values_have_no_part(shape):
    x, task = draw(shape)
    layer = build(make, shape)
    mask = np.random.default_rng(4).random(shape[:-1]) < 0.6
    x[~mask] = 1e6
    y, means, variances = trained(layer, x, task, mask)
    found = to_numpy(layer(x, task, training=True, mask=mask))
    np.testing.assert_allclose(found[mask], y[mask], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_mean), means, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variances, rtol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="eager all through: a ValueError")
def test_unknown_tasks_have_no_part_in_compiled_training():
    x, task = draw(SHAPES[1])
    layer = build(make, x.shape)
    checked = functional(layer, x.shape)
    model = keras.Model(checked.input, checked.output)  # Which checks nothing.
    wrong = np.arange(len(x)) % 4 == 1
    _, means, variances = trained(layer, x[~wrong], task[~wrong])
    x[wrong] = np.nan  # As what a superposed layer below would give.
    task[wrong] = NUM_TASKS
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch({"image": x, "task": task}, np.zeros_like(x))
    np.testing.assert_allclose(to_numpy(layer.moving_mean), means, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variances, rtol=1e-5)


def test_a_single_value_of_a_task_is_normalized_with_running_statistics():
    x, _ = draw(SHAPES[0])
    task = np.array([0, *[1] * (len(x) - 1)])
    layer = build(make, x.shape)
    expected = reference(layer, x[:1], 0)
    y = to_numpy(layer(x, task, training=True))
    np.testing.assert_allclose(y[:1], expected, rtol=1e-5)


def test_frozen_it_uses_running_statistics():
    x, task = draw(SHAPES[1])
    layer = build(make, x.shape)
    layer.trainable = False
    weights = [np.array(w) for w in layer.get_weights()]
    np.testing.assert_array_equal(
        to_numpy(layer(x, task, training=True)), to_numpy(layer(x, task))
    )
    for a, b in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", MAKERS)
def test_files_keep_the_answers_and_grow(make, tmp_path):
    x, task = draw(SHAPES[1])
    inputs = {"image": x, "task": task}
    model = functional(build(make, x.shape, name="norm"), x.shape)
    expected = model.predict(inputs, verbose=0)
    paths = [v.path for v in model.weights]
    model.add_tasks(2)
    assert [v.path for v in model.weights] == paths
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)
    new = model.get_layer("norm")
    assert (to_numpy(new.moving_mean)[NUM_TASKS:] == 0).all()
    assert (to_numpy(new.moving_variance)[NUM_TASKS:] == 1).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


def test_bad_input():
    with pytest.raises(ValueError, match="are not renormalized"):
        TaskBatchNormalization(2, renorm=True)
    with pytest.raises(ValueError, match="`axis` must be one of"):
        TaskBatchNormalization(2, axis=0).build((None, 3))
    with pytest.raises(ValueError, match="`axis` must be known"):
        TaskBatchNormalization(2).build((None, None))
    with pytest.raises(ValueError, match="more than one value of each channel"):
        make()(np.ones((1, 4), "float32"), 0, training=True)
    with pytest.raises(ValueError, match="A mask must be"):
        make()(np.ones((2, 4), "float32"), 0, training=True, mask=np.ones((2, 4)) > 0)
    with pytest.raises(TypeError, match="no contexts that could be mixed"):
        make()(np.ones((2, 4), "float32"), np.ones((2, NUM_TASKS), "float32"))
    with pytest.raises(ValueError, match="called with a `task`"):
        make()(np.ones((2, 4), "float32"))
