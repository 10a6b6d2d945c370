import keras
import numpy as np
import pytest
from conftest import once
from conftest import some_once
from keras import ops
from layer_checks import to_numpy

from keras_psp.consolidation import EWC
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.models import mlp


def regression(optimizer):
    """A linear model without bias, its data and its quadratic loss's curvature."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, "mse")
    return model


def draw(seed, n=64, num_inputs=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, num_inputs)).astype("float32")
    w = rng.normal(size=(num_inputs, 1)).astype("float32")
    # Noise, for else the Fisher information of what fits would be none.
    return x, x @ w + rng.normal(scale=0.7, size=(n, 1)).astype("float32")


def train(model, x, y, steps=200):
    """Gradient descent on the whole of the data, in one epoch."""
    x_all, y_all = np.tile(x, (steps, 1)), np.tile(y, (steps, 1))
    model.fit(x_all, y_all, batch_size=len(x), verbose=0, shuffle=False)


def kernel(model):
    return to_numpy(model.trainable_variables[0]).astype("float64")


@pytest.mark.parametrize("decay", [once(None), 0.5])
def test_three_tasks_end_where_the_sum_of_parabolas_is_least(decay):
    strength = 0.7
    ewc = EWC(
        keras.optimizers.SGD(0.1), strength, decay=decay, labels="data", examples=1000
    )
    model = regression(ewc)
    past = []
    for task in range(3):
        x, y = draw(task)
        train(model, x, y)
        # mean (x w - y)^2 + strength / 2 sum_k F_k (w - w_k)^2, in closed form.
        a = 2 * x.T @ x / len(x)
        b = 2 * x.T @ y / len(x)
        if decay is not None and past:
            total, last = 0.0, past[-1][1]
            for fisher, _ in past:
                total = decay * total + fisher
            terms = [(total, last)]
        else:
            terms = past
        for fisher, w in terms:
            a = a + strength * np.diag(fisher[:, 0])
            b = b + strength * fisher * w
        expected = np.linalg.solve(a, b)
        np.testing.assert_allclose(kernel(model), expected, rtol=1e-3, atol=1e-3)
        ewc.end_task(model, (x, y))
        residual = x @ kernel(model) - y
        fisher = np.mean((2 * residual * x) ** 2, axis=0)[:, None]
        assert fisher.min() > 0.3
        past.append((fisher, kernel(model)))


def test_the_fisher_information_is_that_of_the_models_own_labels():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ewc = EWC("sgd", examples=8000)
    model.compile(ewc, loss)
    ewc.build(model.trainable_variables)
    x = np.random.default_rng(0).normal(size=(8000, 3)).astype("float32")
    before = [to_numpy(v) for v in model.variables]
    ewc.end_task(model, (x, np.zeros(len(x), "int32")))  # These labels say nothing.
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(variable))
    logits = x @ kernel(model)
    p = 1 / (1 + np.exp(logits[:, :1] - logits[:, 1:]))
    # Of two classes: dlogp/dw = (chosen - p) x, whose variance is p (1 - p) x^2.
    expected = np.mean((p * (1 - p)) * x**2, axis=0)
    found = to_numpy(ewc.importances[0])
    np.testing.assert_allclose(found, np.stack([expected] * 2, 1), rtol=0.1)
    # And from probabilities alike.
    few, found = (x[:500], np.zeros(500, "int32")), []
    twin = keras.Sequential([model, keras.layers.Softmax()])
    losses = (model, loss), (twin, "sparse_categorical_crossentropy")
    for each, its_loss in losses:
        each.compile(EWC("sgd", examples=500), its_loss)
        each.optimizer.build(each.trainable_variables)
        each.optimizer.end_task(each, few)
        found.append(to_numpy(each.optimizer.importances[0]))
    np.testing.assert_allclose(*found, rtol=1e-3)
    # Even from those that are none.
    twin.layers[0].layers[0].kernel.assign(1e3 * kernel(model))
    twin.optimizer.end_task(twin, few)
    assert np.isfinite(to_numpy(twin.optimizer.importances[0])).all()


def test_labels_of_the_data_give_the_empirical_fisher_information():
    ewc = EWC("sgd", labels="data", examples=50)
    model = regression(ewc)
    ewc.build(model.trainable_variables)
    x, y = draw(3)
    ewc.end_task(model, (x, y))
    residual = x @ kernel(model) - y
    drawn = np.random.default_rng(0).permutation(len(x))[:50]
    expected = np.mean(((2 * residual * x) ** 2)[drawn], axis=0)[:, None]
    np.testing.assert_allclose(to_numpy(ewc.importances[0]), expected, rtol=1e-4)


def test_the_paths_of_synaptic_intelligence_are_the_fall_of_the_loss():
    si = SynapticIntelligence(keras.optimizers.SGD(1e-3), damping=0.1)
    model = regression(si)
    x, y = draw(4)
    start, first = kernel(model), model.evaluate(x, y, verbose=0)
    train(model, x, y, steps=1000)
    last = model.evaluate(x, y, verbose=0)
    paths = to_numpy(si.paths[0])
    np.testing.assert_allclose(paths.sum(), first - last, rtol=1e-2)
    end = kernel(model)
    si.end_task()
    expected = np.maximum(paths, 0) / ((end - start) ** 2 + 0.1)
    np.testing.assert_allclose(to_numpy(si.importances[0]), expected, rtol=1e-4)
    np.testing.assert_array_equal(to_numpy(si.anchors[0]), end.astype("float32"))
    assert not to_numpy(si.paths[0]).any()
    # The paths hold the gradients of the loss, not those of the penalty.
    importance = to_numpy(si.importances[0]).astype("float64")
    si.strength = 50.0
    si.optimizer.learning_rate = 1e-2
    model.compile(si, "mse")  # The strength is compiled in.
    x, y = draw(5)
    first = model.evaluate(x, y, verbose=0)
    train(model, x, y, steps=1000)
    a = 2 * x.T @ x / len(x) + 50 * np.diag(importance[:, 0])
    b = 2 * x.T @ y / len(x) + 50 * importance * end
    np.testing.assert_allclose(kernel(model), np.linalg.solve(a, b), rtol=1e-3)
    last = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(to_numpy(si.paths[0]).sum(), first - last, rtol=3e-2)


def test_importances_add_up_and_are_not_negative():
    si = SynapticIntelligence("sgd", damping=0.5)
    model = regression(si)
    si.build(model.trainable_variables)
    anchor, old = kernel(model), np.array([[1.0], [2.0], [3.0]])
    si.importances[0].assign(old)
    si.paths[0].assign([[0.3], [-0.4], [0.0]])
    model.trainable_variables[0].assign(anchor + 0.5)
    si.end_task()
    expected = old + [[0.3 / 0.75], [0], [0]]
    np.testing.assert_allclose(to_numpy(si.importances[0]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make", some_once((EWC, Gram, SynapticIntelligence), every=(Gram,))
)
def test_before_a_task_has_ended_it_is_the_other_optimizer(make):
    x, y = draw(6)
    models = [regression("adam"), regression(make("adam", strength=1e6))]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        train(model, x, y, steps=60)
    np.testing.assert_array_equal(kernel(models[0]), kernel(models[1]))


@pytest.mark.parametrize("make", [EWC, SynapticIntelligence])
def test_the_penalty_is_what_it_says(make):
    consolidation = make("sgd", strength=3.0)
    model = regression(consolidation)
    consolidation.build(model.trainable_variables)
    assert float(to_numpy(consolidation.penalty())) == 0
    importance, anchor = np.ones((2, 3, 1), "float32") * [[[2]], [[5]]]
    consolidation.importances[0].assign(importance)
    consolidation.anchors[0].assign(anchor)
    expected = 1.5 * np.sum(importance * (kernel(model) - anchor) ** 2)
    np.testing.assert_allclose(
        float(to_numpy(consolidation.penalty())), expected, rtol=1e-5
    )


# On each backend test_golden.py reads files of all of them.
@pytest.mark.parametrize(
    "make", some_once((EWC, Gram, SynapticIntelligence), every=(Gram,))
)
def test_files_keep_it_and_training_goes_on(make, tmp_path):
    options = {
        EWC: {"labels": "data"},
        Gram: {"every": 4, "largest": 2},
        SynapticIntelligence: {"damping": 0.2},
    }[make]
    model = regression(make(keras.optimizers.Adam(0.01), strength=2.0, **options))
    x, y = draw(7)
    train(model, x, y, steps=10)
    model.optimizer.end_task(model, (x, y))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert to_numpy(again.optimizer.penalty()) == to_numpy(model.optimizer.penalty())
    x, y = draw(8)
    for one in (model, again):
        train(one, x, y, steps=10)
        one.optimizer.end_task(one, (x, y))
        train(one, x, y, steps=5)
    np.testing.assert_allclose(kernel(again), kernel(model), rtol=1e-6)


def test_layers_that_behave_otherwise_in_training_are_left_as_they_are():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(EWC("adam", examples=16), loss)
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    y = np.eye(2, dtype="float32")[np.random.default_rng(0).integers(2, size=32)]
    model.fit(x, y, verbose=0)
    before = [to_numpy(v) for v in model.variables]
    model.optimizer.end_task(model, (x, y))
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(variable))
    assert all(to_numpy(f).max() > 0 for f in model.optimizer.importances)
    model.fit(x, y, verbose=0)
    assert np.isfinite(to_numpy(model.optimizer.penalty()))


def test_learning_rate_and_iterations_are_the_other_optimizers():
    ewc = EWC(keras.optimizers.Adam(0.01))
    model = regression(ewc)
    x, y = draw(9)
    train(model, x, y, steps=3)
    assert int(ewc.iterations) == 3
    ewc.learning_rate = 0.5
    assert float(ewc.optimizer.learning_rate) == 0.5 == float(ewc.learning_rate)


def test_bad_arguments():
    for arguments, error, match in (
        (dict(strength=-1), ValueError, "`strength` must be a number in"),
        (dict(strength=float("nan")), ValueError, "`strength`"),
        (dict(strength="much"), TypeError, "`strength` must be a number"),
        (dict(decay=1.5), ValueError, r"`decay` must be a number in \[0, 1\]"),
        (dict(examples=0), ValueError, "`examples` must be a positive integer"),
        (dict(labels="dat"), ValueError, "Did you mean 'data'"),
        (dict(optimizer="nadm"), ValueError, "nadm"),
    ):
        with pytest.raises(error, match=match):
            EWC(**arguments)
    with pytest.raises(ValueError, match="`damping` must be positive"):
        SynapticIntelligence(damping=0)
    ewc = EWC("sgd")
    model = regression(ewc)
    ewc.build(model.trainable_variables)
    model.loss = "mae"
    with pytest.raises(ValueError, match='use `labels="data"`'):
        ewc.end_task(model, draw(1))
    with pytest.raises(TypeError, match="`data` must hold arrays.*NoneType"):
        ewc.end_task(model)
    assert not ops.convert_to_numpy(ewc.importances[0]).any()


# With a superposed head all trained weights stay the same ones when a task is added.
@pytest.mark.parametrize("head", ["multi", "superposed"])
@pytest.mark.parametrize(
    "make", some_once((EWC, Gram, SynapticIntelligence), every=(EWC,))
)
def test_a_task_that_was_added_after_another_one_has_ended_ends(make, head):
    model = mlp((3,), 2, num_tasks=1, units=4, depth=1, head=head)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make("adam"), loss)
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    y = (x.sum(axis=1) > 0).astype("int32")
    for task in range(2):
        data = {"image": x, "task": np.full(16, task)}, y
        model.fit(*data, verbose=0)
        model.optimizer.end_task(model, data)
        if task == 0:
            model.add_tasks(1)
    if make is not SynapticIntelligence:
        other = make("adam")  # Which has not ended a task before.
        other.build(model.trainable_variables)
        for found, want in zip(
            keras.tree.flatten(model.optimizer._fisher(model, data)),
            keras.tree.flatten(other._fisher(model, data)),
            strict=True,
        ):
            np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)
    model.fit({"image": x, "task": np.full(16, 1)}, y, verbose=0)
    assert np.isfinite(to_numpy(model.optimizer.penalty()))
    if make is EWC:  # Whose probe was made for other weights.
        ended = model.optimizer
        model.get_layer("logits").trainable = False
        model.compile("adam", loss)
        model.add_tasks(1)
        assert model.num_tasks == 3 and ended.built
