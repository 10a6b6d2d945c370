"""`end_task()` takes what `fit()` takes, and what fails costs nothing."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from conftest import pairs_once
from conftest import some_once
from keras import ops
from layer_checks import to_numpy

import keras_psp
from keras_psp.consolidation import EWC
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype("float32")
Y = (np.arange(24) % 2).astype("int32")


def crossentropy(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def single(units, loss, optimizer=None, shape=(3,), **kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Dense(units, use_bias=False)]
    )
    model.compile(optimizer or EWC("sgd", **kwargs), loss)
    model.optimizer.build(model.trainable_variables)
    return model


def importances(model, data):
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    before = [to_numpy(v) for v in model.variables]
    optimizer.end_task(model, data)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)
    return [to_numpy(each) for each in optimizer.importances]


# What is drawn from the model is compared as a mean over many examples.
MANY = np.tile(X, (60, 1)), np.tile(Y, 60)
DATA = {"model": (*MANY, 0.4), "data": (X, Y, 1e-4)}


@pytest.mark.parametrize("labels", ["model", once("data")])
def test_several_outputs_and_losses(labels):
    x, targets, tolerance = DATA[labels]
    found = []
    for several in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        first = keras.layers.Dense(2, use_bias=False, name="first")(inputs)
        second = keras.layers.Dense(1, use_bias=False, name="second")(inputs)
        outputs = {"first": first, "second": second} if several else first
        model = keras.Model(inputs, outputs)
        options = {"labels": labels, "examples": len(x)}
        loss = {"first": crossentropy(), "second": "mse"}
        weights = {"first": 2.0, "second": 3.0}
        if not several:
            loss, weights = loss["first"], None
        model.compile(EWC("sgd", **options), loss, loss_weights=weights)
        model.optimizer.build(model.trainable_variables)
        y = {"first": targets, "second": x[:, :1]}
        found.append(importances(model, (x, y if several else targets)))
    np.testing.assert_allclose(found[1][0], 4 * found[0][0], rtol=tolerance)
    assert found[1][1].min() > 0


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_outputs_in_a_list_and_one_without_a_loss():
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(n)(inputs) for n in (2, 2, 1)]
    model = keras.Model(inputs, outputs)
    model.compile(Gram("adam"), [crossentropy(), None, "mse"])
    targets = [Y, Y, X[:, :1]]
    model.fit(X, targets, verbose=0)
    model.optimizer.end_task(model, (X, targets))
    sizes = [float(to_numpy(ops.sum(f[1].values))) for f in model.optimizer.factors]
    assert min(sizes[:2]) > 0 and sizes[2:4] == [0, 0] and min(sizes[4:]) > 0


@pytest.mark.parametrize("labels", ["model", once("data")])
def test_a_label_for_each_place(labels):
    x, y, tolerance = DATA[labels]
    options = {"labels": labels, "examples": len(x)}
    one = importances(single(2, crossentropy(), **options), (x, y))[0]
    x, y = (np.repeat(each[:, None], 5, axis=1) for each in (x, y))
    model = single(2, crossentropy(), shape=(5, 3), **options)
    many = importances(model, (x, y))[0]
    # An example's loss is the mean. Labels drawn apart have a fifth of the variance.
    wanted = one if labels == "data" else one / 5
    np.testing.assert_allclose(many, wanted, rtol=tolerance)
    assert many.min() > 0


@pytest.mark.parametrize("labels", ["model", once("data")])
def test_what_is_ignored_and_sample_weights(labels):
    x, y, tolerance = DATA[labels]
    options = {"labels": labels, "examples": len(x)}
    few = np.arange(len(x)) < len(x) // 3
    wanted = importances(single(2, crossentropy(), **options), (x[few], y[few]))[0]
    ignoring = single(2, crossentropy(ignore_class=-1), **options)
    found = importances(ignoring, (x, np.where(few, y, -1)))[0]
    np.testing.assert_allclose(found, wanted / 3, rtol=tolerance)
    weights = few.astype("float32")
    weighted = importances(single(2, crossentropy(), **options), (x, y, weights))[0]
    np.testing.assert_allclose(weighted, wanted / 3, rtol=tolerance)
    assert found.min() > 0


@pytest.mark.parametrize("ignored", [-1, once(None)])
def test_places_that_are_masked_or_ignored_do_not_count(ignored):
    tokens = np.array([[1, 2, 3, 0], [2, 3, 0, 0]] * 6)
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(4, 3, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile(EWC("sgd"), crossentropy(ignore_class=ignored))
    model.optimizer.build(model.trainable_variables)
    labels = np.where(tokens == 3, ignored or 0, tokens % 2)
    used = importances(model, (tokens, labels))[0].max(axis=1) > 0
    assert used.tolist() == [False, True, True, ignored is None]


@pytest.mark.once
@pytest.mark.parametrize("kind", ["mse", "crossentropy"])
def test_losses_may_be_sums_over_places(kind):
    """With a sum over 5 places, gradients are as many times larger as in `fit()`."""
    found = []
    for reduction in ("sum_over_batch_size", "sum"):
        loss = keras.losses.MeanSquaredError(reduction=reduction)
        if kind == "crossentropy":
            loss = crossentropy(reduction=reduction)
        model = single(2, loss, shape=(5, 3))
        found.append(importances(model, np.tile(X[:, None], (1, 5, 1)))[0])
    # The curvature of a squared error is known: it is that of 5 losses.
    factor = 5 if kind == "mse" else 25
    np.testing.assert_allclose(found[1], factor * found[0], rtol=1e-4)
    assert found[0].min() > 0


@pytest.mark.once
@pytest.mark.parametrize("kind", ["", "Sparse"])
def test_classes_may_be_on_any_axis(kind):
    x, found = np.tile(X[:, None], (1, 5, 1)), []
    for axis in (-1, 1):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 3))
        outputs = keras.layers.Dense(2, use_bias=False)(inputs)
        if axis == 1:
            outputs = keras.layers.Permute((2, 1))(outputs)
        model = keras.Model(inputs, outputs)
        loss = getattr(keras.losses, f"{kind}CategoricalCrossentropy")
        model.compile(EWC("sgd"), loss(from_logits=True, axis=axis))
        model.optimizer.build(model.trainable_variables)
        found.append(importances(model, x)[0])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


@pytest.mark.once
def test_outputs_may_be_nested():
    inputs = keras.Input((3,))
    first, second = (keras.layers.Dense(2)(inputs) for _ in range(2))
    outputs = {"a": first, "b": [second, {"c": keras.layers.Dense(1)(inputs)}]}
    model = keras.Model(inputs, outputs)
    targets = {"a": Y, "b": [X[:, :2], {"c": X[:, :1]}]}
    losses = {"a": crossentropy(), "b": ["mse", {"c": "mse"}]}
    model.compile(EWC("sgd"), losses)
    model.optimizer.build(model.trainable_variables)
    assert all(each.max() > 0 for each in importances(model, (X, targets)))


@pytest.mark.once
def test_tasks_may_be_given_by_name():
    found = []
    for tasks in (["a", "b"], 2):
        keras.utils.set_random_seed(0)
        model = keras_psp.models.mlp((3,), 2, num_tasks=tasks, units=4, depth=1)
        model.compile(EWC("sgd"), crossentropy())
        model.optimizer.build(model.trainable_variables)
        index = np.arange(24) % 2
        task = np.array(["a", "b"])[index] if tasks != 2 else index
        found.append(importances(model, ({"image": X, "task": task}, Y)))
    for named, by_index in zip(*found, strict=True):
        np.testing.assert_allclose(named, by_index, atol=1e-6)
    with pytest.raises(ValueError, match="'c'"):
        model.task_names = ["a", "b"]
        data = {"image": X, "task": np.array(["c"] * 24)}, Y
        model.optimizer.end_task(model, data)


@pytest.mark.once
def test_a_loss_of_the_users_own_is_not_taken_for_keras():
    def binary_crossentropy(y, y_pred):
        return keras.losses.binary_crossentropy(y, y_pred, from_logits=True)

    class MeanSquaredError(keras.losses.MeanSquaredError):
        def call(self, y, y_pred):
            return super().call(y, y_pred) ** 2

    for loss in (binary_crossentropy, MeanSquaredError()):
        model = single(1, loss)
        with pytest.raises(ValueError, match='use `labels="data"`'):
            model.optimizer.end_task(model, (X, X[:, :1]))


def test_binary_crossentropy_draws_labels():
    x = RNG.normal(size=(4000, 3)).astype("float32")
    for from_logits in (True, False):
        loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        model = single(1, loss, examples=4000)
        if not from_logits:
            model = keras.Sequential(
                [*model.layers, keras.layers.Activation("sigmoid")]
            )
            model.compile(EWC("sgd", examples=4000), loss)
            model.optimizer.build(model.trainable_variables)
        (found,) = importances(model, (x, np.zeros(4000)))
        p = 1 / (1 + np.exp(-x @ to_numpy(model.trainable_variables[0])))
        expected = np.mean(p * (1 - p) * x**2, axis=0)[:, None]
        np.testing.assert_allclose(found, expected, rtol=0.15)


def test_losses_that_the_model_adds_itself():
    class Penalty(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(ops.square(x)))
            return x

    options = {"kernel_initializer": "ones", "use_bias": False}
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(1, kernel_regularizer="l2", **options),
            Penalty(),
        ]
    )
    model.compile(EWC("sgd", labels="data"))
    model.optimizer.build(model.trainable_variables)
    (found,) = importances(model, {"inputs": X}["inputs"])
    expected = np.mean((2 * X.sum(1, keepdims=True) * X) ** 2, axis=0)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.skipif(BACKEND == "torch", reason="It compiles nothing by itself.")
def test_a_step_that_xla_compiles_builds_the_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(Gram("adam", every=2), crossentropy(), jit_compile=True)
    before = [to_numpy(v) for v in model.trainable_variables]
    model.fit(X, Y, batch_size=8, verbose=0)
    for old, variable, anchor in zip(
        before, model.trainable_variables, model.optimizer.anchors, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(anchor), old)
        assert np.abs(to_numpy(variable) - old).max() > 0


def test_data_sorted_by_class_are_drawn():
    x, y = np.eye(3, dtype="float32")[np.arange(300) // 100], np.arange(300) // 100
    model = single(3, crossentropy(), labels="data", examples=30)
    (found,) = importances(model, (x, y))
    assert (found.max(axis=1) > 0).all()  # Each class has inputs of its own.


def test_steps_over_accumulated_batches_are_those_of_their_mean():
    paths = []
    for steps, size in ((None, 12), (3, 4)):
        inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        model = single(1, "mse", SynapticIntelligence(inner, strength=0.0))
        model.fit(X, X[:, :1], batch_size=size, epochs=4, shuffle=False, verbose=0)
        paths.append(to_numpy(model.optimizer.paths[0]))
        kernel = to_numpy(model.trainable_variables[0])
        model.optimizer.end_task()
        paths.append(to_numpy(model.optimizer.importances[0]))
    np.testing.assert_allclose(paths[2], paths[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(paths[3], paths[1], rtol=1e-4, atol=1e-7)
    assert np.abs(paths[0]).max() > 1e-3 and np.isfinite(kernel).all()


@pytest.mark.parametrize(
    "make, ways",
    [
        (EWC, ("around", "inside")),
        (SynapticIntelligence, ("factor",)),
        once(EWC, ("factor",)),
        once(Gram, ("around", "inside", "factor")),
        once(SynapticIntelligence, ("around", "inside")),
    ],
)
def test_loss_scales_around_and_inside(make, ways):
    found = []
    for way in ("none", *ways):
        adam = keras.optimizers.SGD(0.1)
        if way == "factor":
            adam.loss_scale_factor = 16.0
        scale = keras.optimizers.LossScaleOptimizer
        optimizer = make(scale(adam) if way == "inside" else adam, strength=3.0)
        optimizer = scale(optimizer) if way == "around" else optimizer
        model = single(1, "mse", optimizer)
        for seed in range(2):
            x = np.roll(X, seed, axis=1)
            model.fit(x, X[:, :1], batch_size=6, epochs=3, shuffle=False, verbose=0)
            inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            if seed == 0:
                inner.end_task(model, (x, X[:, :1]))
        found.append(to_numpy(model.trainable_variables[0]))
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("inside", [False, once(True)])
def test_mixed_float16(inside):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        adam = keras.optimizers.Adam()
        if inside:
            adam = keras.optimizers.LossScaleOptimizer(adam)
        model = single(2, crossentropy(), EWC(adam))
    finally:
        keras.config.set_dtype_policy("float32")
    model.fit(X, Y, verbose=0)
    (found,) = importances(model, (X, Y))
    assert np.isfinite(found).all() and found.max() > 0
    model.fit(X, Y, verbose=0)
    assert np.isfinite(to_numpy(model.trainable_variables[0])).all()


@pytest.mark.parametrize(
    "make, labels",
    pairs_once((EWC, Gram), ("model", "data"), every=((Gram, "data"),)),
)
def test_what_fails_changes_nothing(make, labels):
    model = single(3, crossentropy(), make("adam", labels=labels), shape=(6, 3))
    x, y = np.ones((20, 6, 3), "float32"), np.zeros((20, 6), "int32")
    model.fit(x, y, verbose=0)
    state = [to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
    bad = [
        ((x[..., :2], y), ValueError),
        ((x, y[:7]), ValueError),
        ((np.nan * x, y), ValueError),
        ([], ValueError),
        (None, TypeError),
        ((x, "labels"), TypeError),
    ]
    if labels == "data":
        bad.append(((x, np.zeros((20, 5), "int32")), Exception))
    for data, error in bad:
        with pytest.raises(error):
            model.optimizer.end_task(model, data)
    variables = (*model.variables, *model.optimizer.variables)
    for old, variable in zip(state, variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)
    model.optimizer.end_task(model, (x, y))


def test_a_step_that_fails_leaves_the_weights():
    """The loss fails where it is compiled, and not before."""
    calls = []

    def loss(y, y_pred):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("later")
        return ops.sum(y_pred, axis=-1)

    model = single(2, "mse", labels="data")
    before = [to_numpy(v) for v in model.variables]
    model.compile(model.optimizer, loss)
    with pytest.raises(RuntimeError, match="later"):
        model.optimizer.end_task(model, (X, Y))
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)


@pytest.mark.parametrize(
    "make", some_once((EWC, Gram, SynapticIntelligence), every=(Gram,))
)
def test_weights_load_into_a_model_compiled_anew(make, tmp_path):
    def build():
        return single(2, crossentropy(), make(keras.optimizers.Adam(0.01)))

    first, path = build(), tmp_path / "model.weights.h5"
    first.fit(X, Y, verbose=0)
    first.optimizer.end_task(first, (X, Y))
    first.save_weights(path)
    again, idle = build(), build()
    for model in (again, idle):
        model.compile(make(keras.optimizers.Adam(0.01)), crossentropy())
        model.load_weights(path)
    idle.save_weights(path)  # What was not needed yet is not lost.
    idle.load_weights(path)
    for model in (first, again, idle):
        model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    for model in (again, idle):
        variables = zip(first.variables, model.variables, strict=True)
        state = zip(first.optimizer.variables, model.optimizer.variables, strict=True)
        for a, b in (*variables, *state):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


@pytest.mark.parametrize("labels", ["data", once("model")])
def test_another_loss_is_that_of_the_next_end_of_a_task(labels):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer, other = EWC("sgd", labels=labels), EWC("sgd", labels=labels)
    losses = "mse", keras.losses.CategoricalCrossentropy(from_logits=True)
    for loss in losses:
        model.compile(optimizer, loss)
        model.fit(x, x[:, :2], verbose=0)
        found = optimizer._fisher(model, (x, x[:, :2]))
    want = other._fisher(model, (x, x[:, :2]))
    for arrays in zip(*map(keras.tree.flatten, (found, want)), strict=True):
        np.testing.assert_allclose(*arrays, rtol=1e-4)
