"""Layers of every form that `W_0 + C_k W + A core_k V^T + A_k B_k` can take."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import SelfAttention
from layer_checks import draw
from layer_checks import fill_weights
from layer_checks import functional
from layer_checks import to_numpy

import keras_psp
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.counterparts import make_plain
from keras_psp.diagnostics import interference
from keras_psp.diagnostics import memory
from keras_psp.layers import PSPComplexDense
from keras_psp.layers import PSPConv1D
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPConv3D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.models import TaskModel

FORMS = {
    "rank": {"context": None, "rank": 2},
    "core": {"context": None, "core": 2},
    "base": {"context": None, "base": True, "bias_per_task": True},
    "full": {"context": None, "rank": "full"},
    "all": {"base": True, "core": (2, 3), "rank": 2, "bias_per_task": True},
    "few": {
        "context": None,
        "base": True,
        "core": (3, 2),
        "rank": 1,
        "bits": {"base": 4, "core": 7, "rank": 3},
    },
    "copies": {"context": None, "base": True, "rank": "full", "bits": 3},
}
KINDS = {
    "dense": (lambda **form: PSPDense(4, NUM_TASKS, **form), (10, 6)),
    "rows": (lambda **form: PSPDense(4, NUM_TASKS, **form), (10, 3, 6)),
    "conv1d": (
        lambda **form: PSPConv1D(5, 2, NUM_TASKS, padding="causal", **form),
        (10, 5, 2),
    ),
    "conv2d": (
        lambda **form: PSPConv2D(4, 2, NUM_TASKS, strides=2, **form),
        (10, 5, 5, 2),
    ),
    "einsum": (
        lambda **form: PSPEinsumDense(
            "btd,dhe->bthe", (None, 2, 3), NUM_TASKS, bias_axes="he", **form
        ),
        (10, 3, 6),
    ),
    "attention": (lambda **form: SelfAttention(2, 3, NUM_TASKS, **form), (10, 3, 6)),
}


def make(kind, form, **kwargs):
    arguments, shape = KINDS[kind]
    layer = arguments(**FORMS[form], **kwargs)
    layer(np.zeros(shape, "float32"), 0)
    fill_weights(layer)
    return layer, shape


@pytest.mark.parametrize(
    "kind, form",
    [  # Few on each backend, for JAX compiles every operation; all pairs once.
        (kind, form)
        if (kind, form) in (("dense", "all"), ("conv2d", "few"))
        else once(kind, form)
        for kind in KINDS
        for form in FORMS
    ],
)
def test_batches_of_any_tasks_are_the_plain_layers(kind, form):
    layer, shape = make(kind, form)
    x, task = draw(shape)
    mixed = to_numpy(layer(x, task))
    soft = to_numpy(layer(x, np.eye(NUM_TASKS, dtype="float32")[task]))
    np.testing.assert_allclose(soft, mixed, rtol=1e-4, atol=1e-4)
    for k in range(NUM_TASKS):
        own = x[task == k]
        y = to_numpy(layer(own, k))
        np.testing.assert_allclose(mixed[task == k], y, rtol=1e-4, atol=1e-4)
        uniform = layer(own, np.full(len(own), k))
        np.testing.assert_allclose(to_numpy(uniform), y, rtol=1e-4, atol=1e-4)
        if kind != "attention":
            plain = make_plain(layer, k)
            np.testing.assert_allclose(to_numpy(plain(own)), y, rtol=1e-4, atol=1e-4)
    assert np.abs(mixed).max() > 0.01
    if form == "base":  # Without a part of its own a task has the same kernel.
        return
    others = to_numpy(layer(x, (task + 1) % NUM_TASKS))
    assert (np.abs(others - mixed).reshape(len(x), -1).max(1) > 1e-3).all()


@pytest.mark.parametrize("form", ["all", "few"])
def test_volumes(form):
    layer = PSPConv3D(4, 2, NUM_TASKS, **FORMS[form])
    layer(np.zeros((1, 3, 3, 3, 2), "float32"), 0)
    fill_weights(layer)
    x, task = draw((5, 3, 3, 3, 2))
    y = to_numpy(layer(x, task))
    for i, k in enumerate(task):
        expected = to_numpy(make_plain(layer, int(k))(x[i : i + 1]))
        np.testing.assert_allclose(y[i : i + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, form", [("dense", "rank"), ("conv2d", "few")])
def test_there_is_no_superposed_kernel(kind, form):
    layer, _ = make(kind, form)
    names = {w.path.removeprefix(layer.name + "/") for w in layer.weights}
    assert layer.kernel is None and layer.context is None
    assert "kernel" not in names and not any("context" in name for name in names)
    assert layer.kernel_shape == tuple(layer.task_kernel(1).shape)
    with_context = PSPDense(4, NUM_TASKS)
    with_context.build((None, 6))
    assert with_context.kernel_shape == (6, 4)


def model_of(form, kinds=("conv2d", "attention", "dense"), fill=True):
    image = keras.Input((5, 5, 2), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = image
    if "conv2d" in kinds:
        x = PSPConv2D(4, 3, NUM_TASKS, activation="relu", **FORMS[form])(x, task)
    x = keras.layers.Reshape((-1, 4))(x) if "conv2d" in kinds else x
    if "attention" in kinds:
        x = PSPMultiHeadAttention(2, 3, NUM_TASKS, **FORMS[form])(x, x, task=task)
    x = PSPDense(3, NUM_TASKS, **FORMS[form])(keras.layers.Flatten()(x), task)
    model = TaskModel({"image": image, "task": task}, x)
    if fill:
        fill_weights(model)
    return model


@pytest.mark.parametrize("form", [once("all"), "few"])
def test_files_keep_it_and_tasks_come_and_go(form, tmp_path):
    model, (x, task) = model_of(form), draw((10, 5, 5, 2))
    inputs = {"image": x, "task": task}
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.saving.load_model(tmp_path / "model.keras")
    other = model_of(form, fill=False)
    other.load_weights(tmp_path / "model.weights.h5")
    for each in (again, other, keras.models.clone_model(model)):
        assert [w.shape for w in each.weights] == [w.shape for w in model.weights]
    for weight, own in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, own)
    # Where arrays lie in memory changes how torch adds up.
    np.testing.assert_allclose(to_numpy(other(inputs)), expected, rtol=1e-6, atol=1e-6)
    again.add_tasks(2)
    np.testing.assert_allclose(to_numpy(again(inputs)), expected, rtol=1e-6, atol=1e-5)
    dense = again.layers[-1]
    assert again.num_tasks == dense.num_tasks == NUM_TASKS + 2
    if form == "few":  # A new task has nothing but the base.
        new = to_numpy(dense.task_kernel(NUM_TASKS))
        np.testing.assert_array_equal(new, to_numpy(dense.base_kernel))
    assert {each.num_tasks for each in find_layers(again)} == {NUM_TASKS + 2}
    again.remove_tasks(n=2)
    np.testing.assert_allclose(to_numpy(again(inputs)), expected, rtol=1e-6, atol=1e-5)
    for k in (0, 3):
        plain = keras_psp.extract(model, k)
        y = to_numpy(plain(x))
        known = task == k
        np.testing.assert_allclose(y[known], expected[known], rtol=1e-4, atol=1e-4)
    width = 9 * 4
    with keras_psp.task(3):
        y = model.layers[-1](np.ones((2, width)))
    assert tuple(y.shape) == (2, 3)


@pytest.mark.parametrize("form", ["few", "copies"])
def test_unknown_tasks_are_nan_and_no_others(form):
    model, (x, task) = model_of(form, kinds=()), draw((10, 5, 5, 2))
    expected = model.predict({"image": x, "task": task}, verbose=0)
    wrong = np.where(np.arange(10) == 4, NUM_TASKS, task).astype("int32")
    if BACKEND == "torch":  # Which reads tasks, and raises.
        with pytest.raises(ValueError, match="task=5"):
            model.predict({"image": x, "task": wrong}, verbose=0)
        return
    y = model.predict({"image": x, "task": wrong}, verbose=0)
    assert np.isnan(y[4]).all()
    known = np.arange(10) != 4
    np.testing.assert_allclose(y[known], expected[known], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantize_rounds_every_part(mode, tmp_path):
    model, (x, task) = model_of("rank"), draw((10, 5, 5, 2))
    inputs = {"image": x, "task": task}
    exact = to_numpy(model(inputs))
    before = memory(model).parts["low_rank"]
    model.quantize(mode)
    y = to_numpy(model(inputs))
    bits = int(mode.removeprefix("int"))
    assert 0 < np.abs(y - exact).max() < (0.1, 1)[bits == 4] * np.abs(exact).max()
    for layer in leaf_layers(find_layers(model)):
        assert layer.low_rank.bits == bits and layer.quantization_mode is None
        assert not layer.low_rank.trainable_weights
    assert memory(model).parts["low_rank"] < before * bits / 20
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(again(inputs)), y, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be quantized"):
        model.quantize(mode)


def find_layers(model):
    kinds = (PSPDense, PSPConv2D, PSPMultiHeadAttention)
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def test_memory_counts_a_float_kernel_for_each_model_and_interference_skips_it():
    model = model_of("base", kinds=("dense",))
    found = memory(model)
    assert found.parts["base_kernels"] == 4 * 50 * 3 and found.parts["kernels"] == 0
    assert found.separate == NUM_TASKS * 4 * (50 * 3 + 3)
    with pytest.raises(ValueError, match="must have a superposed layer"):
        interference(model)
    x = model.layers[-1].output
    x = PSPDense(2, NUM_TASKS)(x, model.input["task"])
    mixed = TaskModel(model.input, x)
    assert len(interference(mixed).layers) == 1


def test_lower_precision_is_close():
    exact, shape = make("dense", "few")
    x, task = draw(shape)
    for policy, tolerance in (("mixed_float16", 2e-2), ("mixed_bfloat16", 1e-1)):
        layer = PSPDense(4, NUM_TASKS, **FORMS["few"], dtype=policy)
        layer.build(shape)
        layer.set_weights(exact.get_weights())
        for given in (task, 2):
            expected = to_numpy(exact(x, given))
            y = layer(x, given)
            assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
            scale = np.abs(expected).max() * tolerance
            np.testing.assert_allclose(to_numpy(y), expected, atol=scale)


def test_bad_arguments():
    for form, error, match in (
        ({"context": None, "base": True}, ValueError, "`num_tasks` is needed"),
        ({"context": None, "num_tasks": 3}, ValueError, "must be a `base`, a `rank`"),
        (
            {"context": None, "num_tasks": 0, "base": True},
            ValueError,
            "`num_tasks` must be a positive integer",
        ),
        ({"num_tasks": 3, "rank": "whole"}, TypeError, "`rank` must be a positive"),
        ({"num_tasks": 3, "core": 0}, ValueError, "`core` must be a positive"),
        ({"num_tasks": 3, "core": (1, 2, 3)}, ValueError, "`core` must be a positive"),
        ({"num_tasks": 3, "core": 1.5}, TypeError, "`core` must be a positive"),
        ({"num_tasks": 3, "bits": 4}, ValueError, "the layer has none of these"),
        ({"num_tasks": 3, "base": True, "bits": 9}, ValueError, r"in \[1, 8\]"),
        ({"num_tasks": 3, "base": True, "bits": 0}, ValueError, "positive integer"),
        ({"num_tasks": 3, "base": True, "bits": 2.5}, TypeError, "positive integer"),
        (
            {"num_tasks": 3, "base": True, "bits": {"bse": 4}},
            ValueError,
            "Did you mean 'base'",
        ),
    ):
        with pytest.raises(error, match=match):
            PSPDense(4, **form)
        with pytest.raises(error, match=match):
            PSPMultiHeadAttention(2, 3, **form)
    with pytest.raises(ValueError, match="`dtype`|dtype="):
        PSPDense(4, 3, context=None, rank=1, dtype="int8_from_float32")
    with pytest.raises(ValueError, match="context=None"):
        PSPComplexDense(4, 3, context=None)
    with pytest.raises(ValueError, match=r"at most \(6, 4\).*core=\(2, 5\)"):
        PSPDense(4, 3, core=(2, 5)).build((None, 6))
    with pytest.raises(ValueError, match="no `core`. Received: groups=2"):
        PSPConv2D(4, 3, 3, core=1, groups=2)
    shared = PSPEinsumDense("bhd,hde->bhe", (2, 3), 3, core=1)
    with pytest.raises(ValueError, match=r"core=\(1, 1\)"):
        shared.build((None, 2, 4))
    layer, _ = make("dense", "rank")
    for call in (layer.enable_lora, PSPDense(4, 3, context=None, rank=1).enable_lora):
        with pytest.raises(ValueError, match="Without a context .* LoRA"):
            call(1)
    with pytest.raises(ValueError, match="at least one of 5 tasks"):
        layer.remove_tasks(n=5)


def test_jit_compiled_fit_moves_what_is_trained():
    layer, shape = make("dense", "all")
    model = functional(layer, shape)
    x, _ = draw(shape)
    before = {w.path: to_numpy(w).copy() for w in layer.weights}
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=BACKEND != "torch")
    task = np.resize(np.array([1, 3], "int32"), len(x))
    model.fit({"image": x, "task": task}, np.ones((10, 4)), verbose=0)
    for own in (layer.core.core, layer.low_rank.first, layer.low_rank.second):
        moved = np.abs(to_numpy(own) - before[own.path]).max(axis=(1, 2))
        assert np.flatnonzero(moved).tolist() == [1, 3]
    for shared in (layer.core.first, layer.core.second, layer.kernel):
        assert np.abs(to_numpy(shared) - before[shared.path]).max() > 0
    np.testing.assert_array_equal(
        to_numpy(layer.base_kernel), before[layer.base_kernel.path]
    )
