"""The part of low rank that each task has of its own, `rank=`."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import fill
from layer_checks import functional
from layer_checks import to_numpy

import keras_psp
from keras_psp.diagnostics import interference
from keras_psp.diagnostics import memory
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers import _task_low_rank
from keras_psp.models import TaskModel
from keras_psp.optimizers import PerTask

SHAPE = (10, 6)


def convolutional():
    image = keras.Input((5, 5, 2), name="image")
    task = keras.Input((), dtype="int32", name="task")
    conv = fill(PSPConv2D(4, 3, NUM_TASKS, rank=2), (None, 5, 5, 2))
    dense = PSPDense(3, NUM_TASKS, base=True, bias_per_task=True, rank=1)
    fill(dense, (None, 36))
    x = keras.layers.Flatten()(conv(image, task))
    return TaskModel({"image": image, "task": task}, dense(x, task))


def fill_rows(layer):
    rng = np.random.default_rng(2)
    for weight in layer.low_rank.weights:
        weight.assign(rng.normal(size=weight.shape))


def test_a_new_layer_answers_as_without_it():
    x, task = draw(SHAPE)
    layer, plain = (PSPDense(4, NUM_TASKS, rank=rank) for rank in (2, None))
    y = to_numpy(layer(x, task))
    plain.build(SHAPE)
    plain.set_weights(layer.get_weights()[: len(plain.weights)])
    np.testing.assert_array_equal(y, to_numpy(plain(x, task)))
    assert 0.1 < to_numpy(layer.low_rank.first).std() * np.sqrt(SHAPE[1]) < 3
    fill_rows(layer)
    assert np.abs(to_numpy(layer(x, task)) - y).max() > 0.1


def test_soft_contexts_mix_it():
    layer = fill(PSPDense(4, NUM_TASKS, rank=2), SHAPE)
    x, weights = draw((2, 6))[0], np.array([[0.25, 0.75, 0, 0, 0]] * 2, "float32")
    parts = [to_numpy(layer(x, k)) for k in range(NUM_TASKS)]
    expected = np.einsum("bk,kbn->bn", weights, parts)
    np.testing.assert_allclose(to_numpy(layer(x, weights)), expected, atol=1e-5)


@pytest.mark.parametrize("tasks", [[1], [1, 3]])
def test_other_tasks_stand_still(tasks):
    x = draw(SHAPE)[0]
    layer = PSPDense(4, NUM_TASKS, rank=2)
    model = functional(layer, SHAPE)
    fill_rows(layer)
    model.compile(PerTask(keras.optimizers.Adam(0.1)), "mse")
    before = [to_numpy(weight).copy() for weight in layer.low_rank.weights]
    given = {"image": x, "task": np.resize(np.array(tasks, "int32"), len(x))}
    model.fit(given, np.ones((10, 4)), epochs=2, verbose=0)
    for old, weight in zip(before, layer.low_rank.weights, strict=True):
        moved = np.abs(to_numpy(weight) - old).max(axis=(1, 2))
        assert np.flatnonzero(moved).tolist() == tasks


def test_its_tasks_are_found_in_the_extracted_model():
    model, (x, _) = convolutional(), draw((10, 5, 5, 2))
    for k in (0, 3):
        plain = keras_psp.extract(model, k)
        y = model.predict({"image": x, "task": np.full(10, k, "int32")}, verbose=0)
        np.testing.assert_allclose(plain.predict(x, verbose=0), y, rtol=1e-4, atol=1e-4)


def test_files_keep_it_and_tasks_come_and_go(tmp_path):
    model, (x, task) = convolutional(), draw((10, 5, 5, 2))
    inputs = {"image": x, "task": task}
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.saving.load_model(tmp_path / "model.keras")
    other = convolutional()
    fill_rows(other.layers[-1])
    other.load_weights(tmp_path / "model.weights.h5")
    for each in (again, other):
        np.testing.assert_array_equal(each.predict(inputs, verbose=0), expected)
    again.add_tasks(2)
    np.testing.assert_allclose(again.predict(inputs, verbose=0), expected, atol=1e-6)
    low_rank = again.layers[-1].low_rank
    assert not to_numpy(low_rank.second)[NUM_TASKS:].any()
    assert low_rank.first.shape == (NUM_TASKS + 2, 36, 1)
    again.remove_tasks(n=2)
    assert low_rank.first.shape == (NUM_TASKS, 36, 1)
    np.testing.assert_allclose(again.predict(inputs, verbose=0), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.parametrize("mode, tolerance", [("int8", 0.03), once("int4", 0.4)])
def test_it_is_rounded_where_kernels_are_integers(mode, tolerance, tmp_path):
    x, task = draw((10, 64))
    layer = PSPDense(4, NUM_TASKS, activation="relu", rank=2)
    model = functional(layer, x.shape)
    fill_rows(layer)
    exact = model.predict({"image": x, "task": task}, verbose=0)
    with pytest.raises(ValueError, match="'float8'"):
        model.quantize("float8")
    model.quantize(mode)
    quantized = model.predict({"image": x, "task": task}, verbose=0)
    most = tolerance * np.abs(exact).max()
    assert 0 < np.abs(quantized - exact).max() < most and (quantized >= 0).all()
    assert layer.low_rank.bits == int(mode.removeprefix("int"))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    y = again.predict({"image": x, "task": task}, verbose=0)
    np.testing.assert_allclose(y, quantized, atol=1e-5)
    if BACKEND != "torch":  # Which reads tasks, and raises.
        y = model.predict({"image": x, "task": np.where(task, task, -1)}, verbose=0)
        np.testing.assert_array_equal(np.isnan(y).all(axis=1), task == 0)


def test_memory_has_a_part_for_it_and_interference_none():
    model = convolutional()
    parts = memory(model).parts
    assert parts["low_rank"] == 4 * NUM_TASKS * (2 * (18 + 4) + 1 * (36 + 3))
    assert parts["task_state"] == 4 * NUM_TASKS * 3
    layer = model.layers[-1]
    for weight in (layer.kernel, layer.base_kernel):
        weight.assign(np.zeros(weight.shape))
    models = [keras_psp.extract(model, k) for k in range(NUM_TASKS)]
    energies = interference(model, models=models).layers[-1].energies
    np.testing.assert_allclose(energies, 0, atol=1e-6)


def test_a_fit_leaves_it_out():
    x, task = draw((40, 6))
    inputs = {"image": x, "task": task}
    layer = PSPDense(4, NUM_TASKS, "rotation", bias_per_task=True, rank=2)
    model = functional(layer, x.shape)
    fill_rows(layer)
    layer.kernel.assign(np.zeros((6, 4)))
    before = model.predict(inputs, verbose=0)
    new = keras_psp.extract(model, 0)
    new.layers[-1].kernel.assign(np.zeros((6, 4)))
    keras_psp.surgery.add_models(model, [new], data=[x] * (NUM_TASKS + 1))
    np.testing.assert_allclose(to_numpy(layer.kernel), 0, atol=1e-5)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), before, atol=1e-4)


def test_a_frozen_layer_has_a_frozen_one():
    layer = PSPDense(4, NUM_TASKS, rank=2, trainable=False)
    layer.build(SHAPE)
    assert not layer.low_rank.trainable_weights


def test_bad_arguments():
    with pytest.raises(ValueError, match="at most 4 for kernels of 6 .* rank=5"):
        PSPDense(4, NUM_TASKS, rank=5).build(SHAPE)
    for rank, error in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="`rank` must be a positive integer"):
            PSPDense(4, NUM_TASKS, rank=rank)
        with pytest.raises(error, match="`rank` must be a positive integer"):
            keras_psp.layers.PSPMultiHeadAttention(2, 3, NUM_TASKS, rank=rank)


LAYERS = {
    "dense": (PSPDense, (4,), (10, 3, 6)),
    "conv": (PSPConv2D, (4, 3), (10, 5, 5, 2)),
    "einsum": (PSPEinsumDense, ("abc,cde->abde", (3, 2, 3)), (10, 3, 4)),
}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dense", {"rank": 2}),
        ("conv", {"rank": 2, "base": True}),
        once("einsum", {"rank": 1}),
        ("conv", {"rank": 2, "bits": 3}),
    ],
)
def test_factors_of_many_tasks_are_looked_up(name, parts, monkeypatch):
    kind, arguments, shape = LAYERS[name]
    x, task = draw(shape)
    found = []
    for least in (1, 1000):  # Each example's own, and all with each example.
        monkeypatch.setattr(_task_low_rank, "_LOOK_UP_FROM", least)
        layer = kind(*arguments, num_tasks=NUM_TASKS, context=None, **parts)
        model = functional(fill(layer, shape), shape)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        given = {"image": x, "task": task}
        outputs = model.predict(given, batch_size=4, verbose=0)  # Of any size.
        model.train_on_batch(given, np.ones_like(outputs))
        found.append([outputs, *model.get_weights()])
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-5)
