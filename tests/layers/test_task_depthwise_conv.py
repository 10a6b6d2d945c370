import keras
import layer_checks
import numpy as np
import pytest
from keras import layers
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

import keras_psp
from keras_psp.layers import TaskDepthwiseConv1D
from keras_psp.layers import TaskDepthwiseConv2D

SHAPES = {1: (10, 6, 4), 2: (10, 5, 6, 4)}
OURS = {1: TaskDepthwiseConv1D, 2: TaskDepthwiseConv2D}
PLAIN = {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D}


def make(rank=2, **kwargs):
    kwargs = {"padding": "same", "depth_multiplier": 2, "activation": "tanh", **kwargs}
    layer = OURS[rank](3, num_tasks=NUM_TASKS, **kwargs)
    layer.build(SHAPES[rank])
    rng = np.random.default_rng(2)  # All tasks start alike.
    layer.set_weights([rng.normal(scale=0.5, size=w.shape) for w in layer.weights])
    return layer


def make_sequence(**kwargs):
    return make(rank=1, padding="valid", use_bias=False, **kwargs)


def reference(layer, x, k):
    """With unit strides, in NumPy."""
    kernel = to_numpy(layer.kernel)[k]
    if layer.padding == "same":
        x = np.pad(x, [(0, 0), *[(1, 1)] * layer.rank, (0, 0)])
    size = [n - 2 for n in x.shape[1:-1]]
    y = 0.0
    for tap in np.ndindex(*layer.kernel_size):
        places = (slice(t, t + n) for t, n in zip(tap, size, strict=True))
        y = y + x[(slice(None), *places)][..., None] * kernel[tap]
    y = y.reshape(*y.shape[:-2], -1)
    return np.tanh(y + to_numpy(layer.bias)[k] if layer.use_bias else y)


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make, rank", [(make, 2), (make_sequence, 1)])
def test_layer(make, rank, check):
    check(make, reference, SHAPES[rank])


@pytest.mark.parametrize(
    "rank, options",
    [
        (2, dict(strides=2)),
        (2, dict(strides=2, padding="valid", depth_multiplier=1)),
        (2, dict(dilation_rate=(2, 1))),
        (2, dict(data_format="channels_first")),
        (1, dict(strides=2, data_format="channels_first")),
        (1, dict(dilation_rate=2)),
    ],
)
def test_every_task_is_the_keras_layer_with_its_kernel(rank, options):
    options = {"padding": "same", "depth_multiplier": 2, **options}
    x, task = draw(SHAPES[rank])
    layer, plain = OURS[rank](3, NUM_TASKS, **options), PLAIN[rank](3, **options)
    layer.build(x.shape)
    rng = np.random.default_rng(2)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    plain.build(x.shape)
    y = to_numpy(layer(x, task))
    assert layer.compute_output_shape(x.shape) == y.shape
    for k in range(NUM_TASKS):
        plain.set_weights([to_numpy(weight)[k] for weight in layer.weights])
        expected = to_numpy(plain(x))
        np.testing.assert_allclose(y[task == k], expected[task == k], atol=1e-5)
        np.testing.assert_allclose(to_numpy(layer(x, k)), expected, atol=1e-5)


def test_one_task_trains_as_the_keras_layer_and_leaves_the_others():
    x, _ = draw((10, 5, 6, 4))
    layer, plain = make(), PLAIN[2](3, padding="same", depth_multiplier=2)
    layer.activation = plain.activation
    plain.build(x.shape)
    before = [np.array(weight) for weight in layer.get_weights()]
    plain.set_weights([weight[3] for weight in before])
    target = np.ones((10, 5, 6, 8), "float32")
    image = keras.Input(x.shape[1:])
    alone = keras.Model(image, plain(image))
    alone.compile(keras.optimizers.SGD(1.0), "mse")
    alone.fit(x, target, verbose=0, batch_size=10)
    for task in (np.full(10, 3, "int32"), np.array([3, 3, 3, 3, 3, 3, 3, 3, 3, 1])):
        model = functional(layer, x.shape)
        layer.set_weights(before)
        model.compile(keras.optimizers.SGD(1.0), "mse")
        model.fit({"image": x, "task": task}, target, verbose=0, batch_size=10)
        for old, new, of_task in zip(
            before, layer.get_weights(), plain.get_weights(), strict=True
        ):
            if task[-1] == 3:
                np.testing.assert_allclose(new[3], of_task, rtol=1e-4, atol=1e-5)
            moved = [np.abs(a - b).max() > 1e-4 for a, b in zip(old, new, strict=True)]
            assert moved == [k in task for k in range(NUM_TASKS)]


def test_images_of_any_size_compiled():
    layer = make(strides=2)
    x, task = draw((10, 7, 6, 4))
    image = keras.Input((None, None, 4), name="image")
    index = keras.Input((), dtype="int32", name="task")
    model = keras.Model({"image": image, "task": index}, layer(image, index))
    for size in (7, 6):
        y = model.predict({"image": x[:, :size], "task": task}, verbose=0)
        expected = to_numpy(layer(x[:, :size], task))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_it_is_a_depthwise_convolution_with_its_arguments_and_no_others():
    for rank, plain in PLAIN.items():
        layer = make(rank)
        assert isinstance(layer, plain)
        assert set(layer.get_config()) == set(plain(3).get_config()) | {"num_tasks"}


def test_files_keep_the_answers_and_grow(tmp_path):
    x, task = draw(SHAPES[2])
    inputs = {"image": x, "task": task}
    model = functional(make(name="conv"), x.shape)
    expected = model.predict(inputs, verbose=0)
    model.add_tasks(2)
    assert [v.path for v in model.weights] == ["conv/kernel", "conv/bias"]
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


@pytest.mark.parametrize("rank, bits", [(2, 8), (1, 3)])
def test_kernels_in_few_bits(rank, bits, tmp_path):
    x, task = draw(SHAPES[rank])
    layer = make(rank, padding="valid", name="conv")
    floats = to_numpy(layer.kernel)
    model = functional(layer, x.shape)
    layer.round_to_bits(bits)
    step = np.expand_dims(to_numpy(layer.kernel_scale), tuple(range(1, 1 + rank)))
    kernels = layer.kernels()
    # A few large numbers may be clipped.
    assert np.mean(np.abs(kernels - floats) <= 0.5001 * step) > 0.8
    assert np.corrcoef(kernels.ravel(), floats.ravel())[0, 1] > 0.98
    same = make(rank, padding="valid")
    same.set_weights([kernels, to_numpy(layer.bias)])
    expected = to_numpy(same(x, task))
    inputs = {"image": x, "task": task}
    for one in (model, keras.models.clone_model(model)):
        one.set_weights(model.get_weights())
        # Batches of any size.
        answers = one.predict(inputs, batch_size=4, verbose=0)
        np.testing.assert_allclose(answers, expected, atol=1e-5)
    codes, new = layer.get_codes(), kernels.copy()
    new[3] *= 2
    (bank, *_) = layer.plain_weights
    bank.assign(new)
    np.testing.assert_allclose(layer.kernels(), new, atol=1e-6)
    others = np.arange(NUM_TASKS) != 3
    for name, value in layer.get_codes().items():
        np.testing.assert_array_equal(value[others], codes[name][others])
    layer.assign_codes(**codes)
    model.add_tasks(2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(inputs, verbose=0), expected, atol=1e-5)
    again.remove_task(1)
    answers = again.predict({**inputs, "task": np.where(task == 1, 0, task)}, verbose=0)
    is_other = task != 1
    np.testing.assert_allclose(answers[is_other], expected[is_other], atol=1e-5)
    plain = keras_psp.extract(again, 2)
    np.testing.assert_array_equal(plain.layers[-1].get_weights()[0], kernels[2])


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize")
def test_is_quantized_with_a_model_and_once():
    image = keras.Input(SHAPES[2][1:])
    model = keras.Model(image, layers.DepthwiseConv2D(3, name="conv")(image))
    model = keras_psp.convert(model, NUM_TASKS)
    model.quantize("int4")
    layer = model.get_layer("conv")
    assert layer.bits == 4 and "uint8" in str(layer.kernel.dtype)
    with pytest.raises(NotImplementedError, match="cannot be quantized"):
        layer.quantize("int4")
    with pytest.raises(ValueError, match=r"integer in \[1, 8\]"):
        make(bits=9)


def test_bad_input():
    with pytest.raises(ValueError, match="channel dimension"):
        TaskDepthwiseConv2D(3, num_tasks=2).build((None, 8, 8, None))
    with pytest.raises(ValueError, match="num_tasks=0"):
        TaskDepthwiseConv2D(3, num_tasks=0)
    with pytest.raises(TypeError, match="no contexts that could be mixed"):
        make()(draw(SHAPES[2])[0], np.ones((10, NUM_TASKS), "float32"))
    with pytest.raises(ValueError, match="expected axis -1"):
        make()(np.ones((1, 5, 6, 3), "float32"), 0)
