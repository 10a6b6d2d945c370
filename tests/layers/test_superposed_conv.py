import context_reference
import keras
import layer_checks
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from conftest import pairs_once
from keras import ops
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import fill
from layer_checks import functional
from layer_checks import shares
from layer_checks import to_numpy

from keras_psp import contexts
from keras_psp.layers import PSPConv1D
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPConv3D

LAYERS = {1: PSPConv1D, 2: PSPConv2D, 3: PSPConv3D}
PLAIN = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
SHAPES = {1: (10, 6, 4), 2: (10, 5, 6, 4), 3: (10, 3, 4, 3, 4)}
SHAPE = SHAPES[2]
# Those of Keras' own tests of Conv2D, and what they leave out.
ARGUMENTS = [
    (2, dict(filters=5, kernel_size=2)),
    (2, dict(filters=6, kernel_size=2, padding="same", dilation_rate=2, groups=2)),
    (2, dict(filters=6, kernel_size=(2, 2), strides=(2, 1), groups=2)),
    (2, dict(filters=3, kernel_size=3, padding="same")),
    (2, dict(filters=3, kernel_size=(3, 2), strides=2, padding="same")),
    (2, dict(filters=3, kernel_size=1, strides=2, padding="same", use_bias=False)),
    (2, dict(filters=4, kernel_size=(2, 3), dilation_rate=(1, 2), groups=4)),
    (1, dict(filters=3, kernel_size=3, padding="causal", dilation_rate=2)),
    (1, dict(filters=4, kernel_size=2, padding="causal", strides=2, groups=2)),
    (1, dict(filters=3, kernel_size=3, padding="same", strides=2)),
    (3, dict(filters=4, kernel_size=2, padding="same", strides=2, groups=2)),
    (3, dict(filters=3, kernel_size=(1, 2, 2), dilation_rate=(1, 3, 1))),
    (3, dict(filters=3, kernel_size=2, data_format="channels_first")),
]
CHANNELS_FIRST = [
    (2, dict(filters=6, kernel_size=3, strides=(2, 1), groups=2, padding="same")),
    (1, dict(filters=3, kernel_size=2, padding="causal")),
]
if BACKEND != "tensorflow":  # Which has these for a GPU alone.
    ARGUMENTS += [
        (rank, {**arguments, "data_format": "channels_first"})
        for rank, arguments in CHANNELS_FIRST
    ]


def convolve(layer, x, kernel):
    """`layer`'s convolution with another kernel, in NumPy."""
    first = layer.data_format == "channels_first"
    x = np.moveaxis(x, 1, -1) if first else x
    groups, width = layer.groups, x.shape[-1] // layer.groups
    per_group = layer.filters // groups
    size, padding = [], [(0, 0)]
    for n, k, s, d in zip(
        x.shape[1:-1],
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        strict=True,
    ):
        span = (k - 1) * d + 1
        missing = {"valid": 0, "causal": span - 1}.get(layer.padding)
        if layer.padding == "same":
            missing = max((-(-n // s) - 1) * s + span - n, 0)
        size.append((n + missing - span) // s + 1)
        before = missing if layer.padding == "causal" else missing // 2
        padding.append((before, missing - before))
    x = np.pad(x, [*padding, (0, 0)])
    y = np.zeros((len(x), *size, layer.filters))
    for place in np.ndindex(*size):
        for tap in np.ndindex(*layer.kernel_size):
            at = np.multiply(place, layer.strides)
            at = at + np.multiply(tap, layer.dilation_rate)
            met = x[(slice(None), *at)]
            for g in range(groups):
                filters = slice(g * per_group, (g + 1) * per_group)
                inputs = met[:, g * width : (g + 1) * width]
                y[(slice(None), *place, filters)] += inputs @ kernel[tap][:, filters]
    return np.moveaxis(y, -1, 1) if first else y


def reference(layer, x, k):
    original, kernel = x, to_numpy(layer.kernel).astype("float64")
    matrix = context_reference.matrix(layer.context, k)
    if layer.context_over == "kernel":
        kernel = (matrix @ kernel.reshape(-1, layer.filters)).reshape(kernel.shape)
    elif layer.data_format == "channels_first":
        x = np.moveaxis(np.moveaxis(x, 1, -1) @ matrix, -1, 1)
    else:
        x = x @ matrix
    base, bias = shares(layer, k)
    y = convolve(layer, x, kernel)
    if np.ndim(base):
        y = y + convolve(layer, original, base)
    first = layer.data_format == "channels_first"
    shape = (-1, *(1,) * (x.ndim - 2)) if first else (-1,)
    return np.tanh(y + np.reshape(bias, shape))


def make_binary(filters=3, kernel_size=3, rank=2, **kwargs):
    kwargs = {
        "num_tasks": NUM_TASKS,
        "activation": "tanh",
        "bias_initializer": "normal",
        **kwargs,
    }
    return LAYERS[rank](filters, kernel_size, **kwargs)


def make_strided(**kwargs):
    kwargs = {"strides": 2, "padding": "same", "groups": 2, "filters": 4, **kwargs}
    return make_binary(**kwargs)


def make_channels(**kwargs):
    return make_strided(context_over="channels", **kwargs)


def make_without_bias(**kwargs):
    return make_binary(
        context_over="channels", padding="same", use_bias=False, **kwargs
    )


def make_learnable(**kwargs):
    return make_binary(
        context=contexts.Binary(NUM_TASKS, learnable=True, name="context"),
        padding="same",
        **kwargs,
    )


def make_base(rank=2, **kwargs):
    # Not in groups: for these TensorFlow compiles each call on a CPU.
    kwargs = {"strides": 2, "padding": "same", "filters": 4, **kwargs}
    layer = make_binary(rank=rank, base=True, bias_per_task=True, **kwargs)
    return fill(layer, SHAPES[rank])


def make_base_over_channels(**kwargs):
    layer = make_binary(context_over="channels", base=True, **kwargs)
    return fill(layer, SHAPE)


def make_low_rank(**kwargs):
    options = {"strides": 2, "padding": "same", "base": True, "bias_per_task": True}
    layer = PSPConv2D(4, 3, NUM_TASKS, activation="tanh", rank=2, **options, **kwargs)
    return fill(layer, SHAPE)


def make_low_rank_over_channels(**kwargs):
    options = {"padding": "causal", "context_over": "channels", **kwargs}
    return fill(
        PSPConv1D(3, 2, NUM_TASKS, rank=2, activation="tanh", **options), SHAPES[1]
    )


def make_causal(**kwargs):
    return make_strided(rank=1, padding="causal", **kwargs)


def make_volume(**kwargs):
    return make_base(rank=3, kernel_size=2, **kwargs)


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "make, rank",
    [
        (make_without_bias, 2),
        once(make_learnable, 2),
        (make_base, 2),
        once(make_base_over_channels, 2),
        once(make_low_rank, 2),
        (make_low_rank_over_channels, 1),
        once(make_causal, 1),
        (make_volume, 3),
    ],
)
def test_layer(make, rank, check):
    check(make, reference, SHAPES[rank])


@pytest.mark.parametrize(
    "rank, arguments, context_over",
    [  # Each backend takes every set of arguments, in turn with either context.
        (*case, over) if (number + place) % 2 else once(*case, over)
        for number, case in enumerate(ARGUMENTS)
        for place, over in enumerate(("kernel", "channels"))
    ],
)
def test_each_example_has_its_own_answer(rank, arguments, context_over):
    layer = make_binary(rank=rank, **arguments, context_over=context_over)
    x, task = draw(SHAPES[rank])
    if layer.data_format == "channels_first":
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    y = to_numpy(layer(x, task))
    assert layer.compute_output_shape(x.shape) == y.shape
    for i, k in enumerate(task):
        expected = reference(layer, x[i : i + 1], k)
        np.testing.assert_allclose(y[i : i + 1], expected, rtol=1e-5, atol=1e-5)
        if i < 1:
            one = to_numpy(layer(x[i : i + 1], np.array([k])))
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank, arguments", ARGUMENTS)
def test_one_task_is_the_keras_layer_with_its_kernel(rank, arguments):
    x, _ = draw(SHAPES[rank])
    if "data_format" in arguments:
        x = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    plain = PLAIN[rank](**arguments)
    plain.build(x.shape)
    for context, tasks in (
        ("identity", [np.full(len(x), 3, "int32")]),
        ("rotation", [3, np.full(len(x), 3, "int32")]),
    ):
        layer = make_binary(rank=rank, context=context, activation=None, **arguments)
        layer.build(x.shape)
        weights = [layer.task_kernel(3), *([layer.bias] if layer.use_bias else [])]
        plain.set_weights([to_numpy(weight) for weight in weights])
        expected = to_numpy(plain(x))
        for task in tasks:
            y = to_numpy(layer(x, task))
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in contexts.FAMILIES else once(kind)
        for kind in context_reference.KINDS
    ],
)
def test_every_family(kind):
    layer = PSPConv2D(2, 2, context=context_reference.make(kind), activation="tanh")
    x, task = draw((10, 3, 3, 2))
    y = to_numpy(layer(x, task))
    for i, k in enumerate(task):
        expected = reference(layer, x[i : i + 1], k)
        np.testing.assert_allclose(y[i : i + 1], expected, rtol=1e-5, atol=1e-5)
    one = to_numpy(layer(x, 3))
    np.testing.assert_allclose(one, reference(layer, x, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context_over", ["kernel", "channels"])
def test_soft_contexts_that_are_sure_are_indices(context_over):
    layer = make_binary(context_over=context_over)
    x, task = draw(SHAPE)
    weights = np.eye(NUM_TASKS, dtype="float32")[task]
    np.testing.assert_allclose(
        to_numpy(layer(x, weights)), to_numpy(layer(x, task)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "make, one_task",
    pairs_once(
        (make_strided, make_channels, make_learnable),
        (True, False),
        every=((make_strided, True), (make_channels, False)),
    ),
)
def test_gradients_equal_finite_differences(make, one_task):
    # Through a layer below, so that they go through the inputs too.
    x, task = draw((10, 4, 4, 2))
    task = np.full_like(task, 3) if one_task else task
    layer = make(activation=None)
    image = keras.Input(x.shape[1:], name="image")
    index = keras.Input((), dtype="int32", name="task")
    below = keras.layers.Conv2D(2, 1, use_bias=False)
    model = keras.Model({"image": image, "task": index}, layer(below(image), index))
    inputs = {"image": x, "task": task}
    target = np.random.default_rng(1).normal(size=(10, *model.output_shape[1:]))
    target = target.astype("float32")
    model.compile(keras.optimizers.SGD(1.0), "mse")
    before = [np.array(ops.convert_to_numpy(v)) for v in model.trainable_variables]

    def loss():
        y = model.predict_on_batch(inputs).astype("float64")
        return ((y - target) ** 2).mean()

    step, expected = 1e-2, []
    for variable, value in zip(model.trainable_variables, before, strict=True):
        differences = []
        for position in list(np.ndindex(*value.shape))[:: max(1, value.size // 6)]:
            sides = []
            for sign in (1, -1):
                moved = value.copy()
                moved[position] += sign * step
                variable.assign(moved)
                sides.append(loss())
            differences.append((position, (sides[0] - sides[1]) / (2 * step)))
        variable.assign(value)
        expected.append(differences)
    model.fit(inputs, target, batch_size=10, verbose=0, shuffle=False)
    for variable, value, differences in zip(
        model.trainable_variables, before, expected, strict=True
    ):
        gradient = value - to_numpy(variable)
        for position, difference in differences:
            np.testing.assert_allclose(
                gradient[position], difference, rtol=2e-2, atol=2e-4
            )


def test_it_is_a_convolution_with_its_arguments_and_no_others():
    for rank, plain in PLAIN.items():
        layer = make_binary(rank=rank)
        assert isinstance(layer, plain)
        more = {"num_tasks", "context", "context_over"}
        assert set(layer.get_config()) == set(plain(3, 3).get_config()) | more


@pytest.mark.parametrize("make", [make_strided, make_channels, make_learnable])
def test_files_keep_the_answers(make, tmp_path):
    x, task = draw(SHAPE)
    inputs = {"image": x, "task": task}
    model = functional(make(name="conv"), x.shape)
    paths = ["conv/kernel", "conv/bias", "conv/context/contexts"]
    assert sorted(v.path for v in model.weights) == sorted(paths)
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert sorted(v.path for v in again.weights) == sorted(paths)
    np.testing.assert_array_equal(to_numpy(again(inputs)), expected)


def test_lora_trains_two_small_kernels(tmp_path):
    x, task = draw(SHAPE)
    inputs = {"image": x, "task": 0 * task}
    layer = PSPConv2D(4, 3, num_tasks=1)
    model = functional(layer, x.shape)
    before = to_numpy(model(inputs))
    layer.enable_lora(2)
    names = sorted(v.name for v in layer.trainable_variables)
    assert names == ["bias", "lora_kernel_a", "lora_kernel_b"]
    model.compile(keras.optimizers.SGD(0.5), "mse")
    np.testing.assert_allclose(to_numpy(model(inputs)), before, atol=1e-6)
    model.fit(inputs, np.ones_like(before), verbose=0)
    after = to_numpy(model(inputs))
    assert np.abs(after - before).max() > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(inputs)), after, atol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="which reads tasks, and raises")
@pytest.mark.parametrize("activation", [None, "hard_shrink"])
def test_unknown_tasks_beside_the_task_they_are_clipped_to(activation):
    # `hard_shrink` makes 0 of what is not beyond its threshold, NaN among it.
    layer = make_binary(activation=activation)
    image = keras.Input(SHAPE[1:], name="image")
    index = keras.Input((), dtype="int32", name="task")
    model = keras.Model({"image": image, "task": index}, layer(image, index))
    x, last = draw(SHAPE)[0], NUM_TASKS - 1
    for task in ([last, last + 3] * 5, [last + 2, last] * 5, [last + 1] * 10):
        y = model.predict({"image": x, "task": np.array(task)}, verbose=0)
        for example, k in zip(y, task, strict=True):
            assert (np.isfinite if k == last else np.isnan)(example).all()


@pytest.mark.parametrize(
    "strides, padding",
    pairs_once((1, 2), ("same", "valid"), every=((1, "same"), (2, "valid"))),
)
def test_images_of_any_size_compiled(strides, padding):
    x, task = draw((10, 7, 6, 2))
    layer = make_binary(strides=strides, padding=padding)
    image = keras.Input((None, None, 2), name="image")
    index = keras.Input((), dtype="int32", name="task")
    model = keras.Model({"image": image, "task": index}, layer(image, index))
    for size in (7, 6):
        inputs = {"image": x[:, :size], "task": task}
        np.testing.assert_allclose(
            model.predict(inputs, verbose=0),
            to_numpy(layer(x[:, :size], task)),
            rtol=1e-5,
            atol=1e-5,
        )


def test_bad_arguments():
    with pytest.raises(ValueError, match="`context_over` must be one of"):
        make_binary(context_over="images")
    with pytest.raises(ValueError, match="channel dimension"):
        make_binary().build((None, 8, 8, None))
    with pytest.raises(ValueError, match="number of groups"):
        make_binary(filters=4, groups=2)(np.ones((1, 4, 4, 3), "float32"), 0)
    with pytest.raises(ValueError, match="min_ndim=4"):
        make_binary()(np.ones((1, 4, 4), "float32"), 0)
    with pytest.raises(ValueError, match="min_ndim=4|expected axis -1"):
        layer = make_binary()
        layer(np.ones((1, 4, 4, 2), "float32"), 0)
        layer(np.ones((1, 4, 4, 3), "float32"), 0)
    with pytest.raises(ValueError, match="can have no `rank`.*groups=2, rank=1"):
        PSPConv2D(4, 3, NUM_TASKS, groups=2, rank=1)
    context = contexts.Binary(NUM_TASKS)
    make_binary(context=context)(np.ones((1, 4, 4, 2), "float32"), 0)
    with pytest.raises(ValueError, match="18 inputs.*a layer of 36"):
        make_binary(context=context)(np.ones((1, 4, 4, 4), "float32"), 0)


@pytest.mark.parametrize(
    "context_over, base, rank",
    [("kernel", False, None), ("channels", True, None), ("kernel", False, 2)],
)
def test_kernels_or_patches_are_bound_to_equal_answers(context_over, base, rank):
    """Patches where there are more tasks than examples, and kernels where not."""
    x, task = draw(SHAPE)
    answers = []
    for num_tasks in (NUM_TASKS, len(x) + 1):
        layer = PSPConv2D(4, 3, num_tasks, "rotation", context_over, base, rank=rank)
        layer.build(SHAPE)
        rng = np.random.default_rng(0)
        for weight in layer.weights:
            if weight.name == "kernel":
                weight.assign(rng.normal(size=weight.shape))
        if rank is not None:
            for weight in layer.low_rank.weights:
                rows = rng.normal(size=(len(x) + 1, *weight.shape[1:]))
                weight.assign(rows[:num_tasks])
        answers.append(to_numpy(layer(x, task)))
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-5)
    one_by_one = [to_numpy(layer(x[i : i + 1], int(k)))[0] for i, k in enumerate(task)]
    np.testing.assert_allclose(answers[0], one_by_one, rtol=1e-5, atol=1e-5)
