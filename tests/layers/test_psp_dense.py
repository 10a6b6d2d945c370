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
from keras_psp.layers import PSPDense

SHAPES = ((10, 6), (10, 3, 6), (10, 2, 3, 6))


def reference(layer, x, k):
    base, bias = shares(layer, k)
    kernel = to_numpy(layer.context.bind_kernel(layer.kernel, k))
    return np.tanh(x @ (base + kernel) + bias)


def make_binary(**kwargs):
    kwargs = {"activation": "tanh", "bias_initializer": "normal", **kwargs}
    return PSPDense(4, num_tasks=NUM_TASKS, **kwargs)


def make_learnable(**kwargs):
    return make_binary(context=contexts.Binary(NUM_TASKS, learnable=True), **kwargs)


def make_base(**kwargs):
    options = {"context": "rotation", "base": True, "bias_per_task": True}
    return fill(make_binary(**options, **kwargs), SHAPES[1])


def make_low_rank(**kwargs):
    return fill(make_binary(rank=2, **kwargs), SHAPES[0])


def make_base_and_low_rank(**kwargs):
    return make_base(rank=3, **kwargs)


def make_identity(**kwargs):
    return make_binary(context="identity", **kwargs)


CASES = [
    (make_binary, SHAPES[0]),
    (make_learnable, SHAPES[2]),
    once(make_base, SHAPES[1]),
    once(make_low_rank, SHAPES[0]),
    (make_base_and_low_rank, SHAPES[1]),
]


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make, shape", CASES)
def test_layer(make, shape, check):
    check(make, reference, shape)


def test_identity_is_dense():
    x, task = draw((10, 6))
    layer, dense = make_identity(), keras.layers.Dense(4, activation="tanh")
    layer(x, task)
    dense(x)
    dense.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(layer(x, task)), to_numpy(dense(x)))


def test_tasks_are_added_with_biases_of_their_own():
    layer = make_base()
    x, task = draw(SHAPES[1])
    before = to_numpy(layer(x, task))
    layer.add_tasks(2)
    np.testing.assert_array_equal(to_numpy(layer(x, task)), before)
    assert layer.task_bias.bias.shape == (NUM_TASKS + 2, 4)
    assert layer(x, NUM_TASKS + 1).shape == before.shape


def test_base_and_biases_are_in_the_file(tmp_path):
    x, task = draw(SHAPES[1])
    model = functional(make_base(), SHAPES[1])
    expected = to_numpy(model({"image": x, "task": task}))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    y = to_numpy(loaded({"image": x, "task": task}))
    np.testing.assert_array_equal(y, expected)


def test_base_is_not_trained():
    layer = make_base()
    names = [v.path.split("/")[-1] for v in layer.trainable_weights]
    assert sorted(names) == ["bias", "kernel"]
    assert [v.path for v in layer.non_trainable_weights if "base" in v.path]


def test_soft_contexts_mix_biases():
    layer = fill(make_binary(base=True, bias_per_task=True, activation=None), (2, 6))
    x, _ = draw((2, 6))
    weights = np.array([[0.25, 0.75, 0, 0, 0], [0, 0, 0, 0.5, 0.5]], "float32")
    parts = [to_numpy(layer(x, k)) for k in range(NUM_TASKS)]
    expected = np.einsum("bk,kbn->bn", weights, parts)
    np.testing.assert_allclose(to_numpy(layer(x, weights)), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.parametrize(
    "mode, activation",
    pairs_once(
        ("int8", "int4"), (None, "relu"), every=(("int8", None), ("int4", "relu"))
    ),
)
def test_a_base_is_quantized_too(mode, activation, tmp_path):
    def make():
        layer = PSPDense(
            *(4, NUM_TASKS), base=True, bias_per_task=True, activation=activation
        )
        return layer, functional(layer, (10, 64))

    x, task = draw((10, 64))
    inputs = {"image": x, "task": task}
    layer, model = make()
    rng = np.random.default_rng(1)
    for weight in (layer.kernel, layer.base_kernel, layer.task_bias.bias):
        weight.assign(rng.normal(scale=0.2, size=weight.shape))
    exact = to_numpy(model(inputs))
    model.quantize(mode)
    assert layer.base.quantization_mode == layer.quantization_mode == mode
    size = 64 * 4 // (1 if mode == "int8" else 2)
    assert np.asarray(layer.base.weights[0]).nbytes == size
    quantized = model.predict(inputs, verbose=0)
    tolerance = (0.03 if mode == "int8" else 0.4) * np.abs(exact).max()
    np.testing.assert_allclose(quantized, exact, atol=tolerance)
    if activation == "relu":
        assert (quantized >= 0).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(inputs)), quantized, atol=1e-5)


def test_what_cannot_be_quantized_is_named_before_anything_changes():
    x, task = draw((10, 64))
    layer = PSPDense(4, NUM_TASKS, base=True)
    model = functional(layer, x.shape)
    before = to_numpy(model({"image": x, "task": task}))
    with pytest.raises(ValueError, match=f"'float8'.*{layer.name}"):
        model.quantize("float8")
    assert layer.quantization_mode is None
    after = to_numpy(model({"image": x, "task": task}))
    np.testing.assert_array_equal(after, before)


def test_a_frozen_layer_has_frozen_contexts():
    layer = make_learnable(trainable=False)
    layer.build(SHAPES[1])
    assert not layer.trainable_weights


def test_it_is_a_dense_with_its_arguments_and_no_others():
    layer = make_binary()
    assert isinstance(layer, keras.layers.Dense)
    dense = keras.layers.Dense(4).get_config()
    assert set(layer.get_config()) == set(dense) | {"num_tasks", "context"}


def test_weights_have_stable_paths(tmp_path):
    model = functional(make_binary(name="dense"), (10, 6))
    paths = ["dense/kernel", "dense/bias", "dense/context/contexts"]
    assert sorted(v.path for v in model.weights) == sorted(paths)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert [v.path for v in again.weights] == [v.path for v in model.weights]


@pytest.mark.parametrize("make", [make_binary, make_identity, make_learnable])
def test_files_keep_the_answers(make, tmp_path):
    x, task = draw((10, 6))
    inputs = {"image": x, "task": task}
    model = functional(make(), x.shape)
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again(inputs)), expected)
    model.save_weights(tmp_path / "model.weights.h5")
    # Other signs, which the file must replace.
    other = make_binary(context=contexts.Binary(NUM_TASKS, seed=9))
    other = functional(make() if make is make_identity else other, x.shape)
    assert np.abs(to_numpy(other(inputs)) - expected).max() > 0.1
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(other(inputs)), expected)


def test_lora_trains_two_small_kernels_and_merges_when_saved(tmp_path):
    x, task = draw((10, 6))
    inputs = {"image": x, "task": 0 * task}
    layer = PSPDense(4, num_tasks=1)
    model = functional(layer, x.shape)
    before = to_numpy(model(inputs))
    layer.enable_lora(2)
    names = [v.name for v in layer.trainable_variables]
    assert sorted(names) == ["bias", "lora_kernel_a", "lora_kernel_b"]
    model.compile(keras.optimizers.SGD(0.5), "mse")
    np.testing.assert_array_equal(to_numpy(model(inputs)), before)
    kernel = to_numpy(layer._kernel).copy()
    model.fit(inputs, np.ones((10, 4)), epochs=3, verbose=0)
    np.testing.assert_array_equal(to_numpy(layer._kernel), kernel)
    after = model.predict(inputs, verbose=0)
    assert np.abs(after - before).max() > 0.01
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(inputs)), after, atol=1e-5)


def test_lora_would_move_all_tasks_and_is_refused():
    layer = make_binary()
    functional(layer, (10, 6))
    weights = layer.get_weights()
    with pytest.raises(ValueError, match="would move all tasks"):
        layer.enable_lora(2)
    assert len(layer.get_weights()) == len(weights) and not layer.lora_enabled


# Keras tells of the layers it cannot quantize, the input layers among them.
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.parametrize(
    "mode, whole_model",
    pairs_once(
        ("int8", "int4", "float8"),
        (True, False),
        every=(("int8", True), ("int4", False), ("float8", True)),
    ),
)
def test_quantized(mode, whole_model, tmp_path):
    x, task = draw((10, 64))
    inputs = {"image": x, "task": task}
    layer = make_binary()
    model = functional(layer, x.shape)
    exact = to_numpy(model(inputs))
    (model if whole_model else layer).quantize(mode)
    model.predict_function = None  # As Model.quantize() does.
    assert layer.dtype_policy.quantization_mode == mode
    if mode != "float8":  # Which keeps its kernel and rounds it when called.
        assert layer._kernel.dtype == "int8"
        itself = 4 if mode == "int8" else 2
        assert layer._kernel.shape == (64, itself)
    quantized = model.predict(inputs, verbose=0)
    difference = np.abs(quantized - exact).max()
    assert 0 < difference < {"int8": 0.05, "int4": 0.5, "float8": 0.5}[mode]
    mixed = task.copy()
    mixed[2] = NUM_TASKS
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="task=5"):
            model.predict({"image": x, "task": mixed}, verbose=0)
    else:
        y = model.predict({"image": x, "task": mixed}, verbose=0)
        assert np.isnan(y[2]).all() and np.isfinite(np.delete(y, 2, axis=0)).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(inputs)), quantized, atol=1e-6)


def test_regularizers_and_constraints_are_denses():
    x, task = draw((10, 6))
    layer = make_binary(
        kernel_regularizer="l2",
        activity_regularizer="l1",
        kernel_constraint=keras.constraints.MaxNorm(0.1),
    )
    y = to_numpy(layer(x, task))
    l1, l2 = np.abs(y).sum() * 0.01 / 10, (to_numpy(layer.kernel) ** 2).sum() * 0.01
    losses = sorted(float(ops.convert_to_numpy(loss)) for loss in layer.losses)
    np.testing.assert_allclose(losses, sorted([l1, l2]), rtol=1e-4)
    model = functional(layer, x.shape)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit({"image": x, "task": task}, np.ones((10, 4)), verbose=0)
    assert np.linalg.norm(to_numpy(layer.kernel), axis=0).max() < 0.1 + 1e-6


# One of them on torch, whose compiler takes 45 s for each.
@pytest.mark.parametrize(
    "make", [make_binary] if BACKEND == "torch" else [make_binary, make_low_rank]
)
def test_jit_compiled_training_and_unknown_tasks(make):
    x, task = draw((10, 6))
    task[4] = NUM_TASKS
    model = functional(make(), x.shape)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    y = model.predict({"image": x, "task": task}, verbose=0)
    assert np.isnan(y[4]).all() and np.isfinite(np.delete(y, 4, axis=0)).all()
    task[4] = 0
    before = to_numpy(model.trainable_variables[0]).copy()
    model.fit({"image": x, "task": task}, np.ones((10, 4)), verbose=0)
    after = to_numpy(model.trainable_variables[0])
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-4


def test_gradients_equal_finite_differences():
    x, task = draw((10, 3))
    layer = PSPDense(1, num_tasks=NUM_TASKS)
    model = functional(layer, x.shape)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    kernel, bias = (np.array(w) for w in layer.get_weights()[:2])
    bank = to_numpy(layer.context.contexts)[task]
    target = np.ones((10, 1), "float32")

    def loss(kernel):
        return float(((((x * bank) @ kernel + bias) - target) ** 2).mean())

    step = 1e-3
    expected = np.zeros_like(kernel)
    for i in range(3):
        shift = np.zeros_like(kernel)
        shift[i] = step
        expected[i] = (loss(kernel + shift) - loss(kernel - shift)) / (2 * step)
    model.fit({"image": x, "task": task}, target, batch_size=10, verbose=0)
    gradient = kernel - to_numpy(layer.kernel)
    np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-4)


def test_one_context_may_not_serve_two_widths():
    context = contexts.Binary(NUM_TASKS)
    PSPDense(2, context=context)(np.ones((1, 3), "float32"), 0)
    PSPDense(2, context=context)(np.ones((1, 3), "float32"), 0)
    with pytest.raises(ValueError, match="3 inputs.*4"):
        PSPDense(2, context=context)(np.ones((1, 4), "float32"), 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_tasks=0"):
        PSPDense(2, num_tasks=0)
    with pytest.raises(ValueError, match="`num_tasks` must be given"):
        PSPDense(2)
    with pytest.raises(ValueError, match="Known: binary, complex, "):
        PSPDense(2, num_tasks=2, context="hash")
    with pytest.raises(ValueError, match="must agree"):
        PSPDense(2, num_tasks=2, context=contexts.Binary(3))
    with pytest.raises(ValueError, match="units"):
        PSPDense(0, num_tasks=2)
