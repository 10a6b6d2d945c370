import keras
import numpy as np
import pytest
from conftest import once
from layer_checks import to_numpy

import keras_psp
from keras_psp.consolidation import EWC
from keras_psp.consolidation import Gram
from keras_psp.consolidation import _fisher as fisher
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense


def build(layer, shape, optimizer, loss="mse", after=()):
    """A model of a layer, superposed or not, and what comes after it."""
    image = keras.Input(shape, name="image")
    task = keras.Input((), dtype="int32", name="task")
    superposed = hasattr(layer, "num_tasks")
    x = layer(image, task) if superposed else layer(image)
    for each in after:
        x = each(x)
    if superposed:
        model = keras_psp.models.TaskModel({"image": image, "task": task}, x)
    else:
        model = keras.Model({"image": image}, x)
    model.compile(optimizer, loss)
    return model


def inputs(model, x, task):
    tasks = {"task": np.full(len(x), task, "int32")} if len(model.inputs) > 1 else {}
    return {"image": x, **tasks}


def bound(layer, x, task):
    """What a layer multiplies its kernel with, task by task."""
    rows = layer.input_rows(keras.ops.convert_to_tensor(x))[:, 0]
    return to_numpy(layer.context.transform(rows, task)).astype("float64")


def draw(seed, n=32, shape=(4,), num_outputs=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype("float32")
    w = rng.normal(size=(shape[-1], num_outputs)).astype("float32")
    return x, x @ w + rng.normal(size=(n, num_outputs)).astype("float32")


def train(model, x, y, task=0, steps=400):
    """Gradient descent on the whole of the data, in one epoch."""
    given = {
        k: np.tile(v, (steps,) + (1,) * (v.ndim - 1))
        for k, v in inputs(model, x, task).items()
    }
    y = np.tile(y, (steps, 1))
    model.fit(given, y, batch_size=len(x), verbose=0, shuffle=False)


@pytest.mark.parametrize("context", ["rotation", once(None)])
def test_linear_tasks_in_turn_end_where_all_together_would(context, monkeypatch):
    monkeypatch.setattr(fisher, "BATCH_SIZE", 1)  # Then the means are no estimates.
    layer = keras.layers.Dense(1, use_bias=False)
    if context:
        layer = PSPDense(1, num_tasks=3, context=context, use_bias=False)
    gram = Gram(keras.optimizers.SGD(0.1), strength=1.0, every=1)
    model = build(layer, (4,), gram)
    rows, targets = [], []
    for task in range(3):
        x, y = draw(task)
        x /= np.sqrt(np.mean(x**2))  # All tasks' gradients are of one size.
        train(model, x, y, task)
        gram.end_task(model, (inputs(model, x, task), y))
        rows.append(bound(layer, x, task) if context else x)
        targets.append(y)
        joint = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))[0]
        np.testing.assert_allclose(to_numpy(layer.kernel), joint, rtol=1e-3, atol=1e-4)
    alone = np.linalg.lstsq(rows[-1], targets[-1])[0]
    assert np.abs(alone - joint).max() > 0.1


@pytest.mark.parametrize("every", [1, once(3)])
def test_loss_and_penalty_hold_the_balance(every):
    strength, rng = 0.7, np.random.default_rng(0)
    layer = keras.layers.Dense(2, use_bias=False)
    # As far as a step goes, it does not matter how often.
    gram = Gram(keras.optimizers.SGD(0.1 / every), strength, every=every)
    model = build(layer, (4,), gram)
    gram.build(model.trainable_variables)
    x, y = draw(1, num_outputs=2)
    left, right = (a @ a.T for a in (rng.normal(size=(4, 4)), rng.normal(size=(2, 2))))
    start = to_numpy(layer.kernel).astype("float64")
    for factor, matrix in zip(gram.factors[0], (left, right), strict=True):
        factor.set(matrix)
        np.testing.assert_allclose(factor.get(), matrix, rtol=1e-4, atol=1e-5)
    train(model, x, y, steps=600 * every)
    # x^T (x W - y) 2 / 2n + strength L (W - W*) R = 0
    size = np.kron(x.T @ x / len(x), np.eye(2)) + strength * np.kron(left, right)
    wanted = x.T @ y / len(x) + strength * left @ start @ right
    expected = np.linalg.solve(size, wanted.ravel()).reshape(4, 2)
    tolerance = 1e-3 if every == 1 else 0.05
    np.testing.assert_allclose(to_numpy(layer.kernel), expected, atol=tolerance)
    apart = to_numpy(layer.kernel) - start
    penalty = strength / 2 * np.trace(apart.T @ left @ apart @ right)
    np.testing.assert_allclose(float(to_numpy(gram.penalty())), penalty, rtol=1e-3)


def test_no_strength_is_too_much():
    layer = keras.layers.Dense(2, use_bias=False)
    gram = Gram(keras.optimizers.SGD(0.1), strength=1e9, every=2)
    model = build(layer, (4,), gram)
    x, y = draw(2, num_outputs=2)
    train(model, x, y, steps=4)
    gram.end_task(model, (inputs(model, x, 0), y))
    kept = to_numpy(layer.kernel)
    train(model, *draw(3, num_outputs=2), steps=8)
    np.testing.assert_allclose(to_numpy(layer.kernel), kept, atol=1e-4)


@pytest.mark.parametrize("context", [once("binary"), "rotation", once(None)])
def test_a_convolution_is_the_product_with_its_patches(context):
    options = {"strides": 2, "padding": "same", "use_bias": False}
    reference = PSPConv2D(3, 3, num_tasks=2, context=context or "identity", **options)
    layer = reference if context else keras.layers.Conv2D(3, 3, **options)
    gram = Gram(keras.optimizers.SGD(0.0), labels="data")
    model = build(layer, (5, 5, 2), gram, after=[keras.layers.Flatten()])
    if not context:
        reference.build((None, 5, 5, 2))
    rng, task = np.random.default_rng(4), 1
    x = rng.normal(size=(6, 5, 5, 2)).astype("float32")
    y = rng.normal(size=(6, 27)).astype("float32")
    given = inputs(model, x, task)
    model.fit(given, y, verbose=0)
    gram.end_task(model, (given, y))
    off = (2 / 27 * (to_numpy(model(given)) - y)).reshape(6, 9, 3)
    patches = bound(reference, x, task).reshape(6, 9, 18)
    gradients = patches.transpose(0, 2, 1) @ off
    left = np.mean(gradients @ gradients.transpose(0, 2, 1), axis=0)
    left /= np.trace(left)  # One task of one.
    right = np.mean(gradients.transpose(0, 2, 1) @ gradients, axis=0)
    for factor, matrix in zip(gram.factors[0], (left, right), strict=True):
        np.testing.assert_allclose(factor.get(), matrix, rtol=1e-3, atol=1e-5)


def test_the_diagonal_is_what_ewc_has():
    x, y = draw(5, n=16, num_outputs=1)
    found = []
    for make in (lambda **a: Gram("sgd", largest=3, **a), lambda **a: EWC("sgd", **a)):
        model = build(keras.layers.Dense(1), (4,), make(labels="data"))
        for variable in model.trainable_variables:
            variable.assign(0.1 * np.ones(variable.shape))
        model.optimizer.build(model.trainable_variables)
        model.optimizer.end_task(model, (inputs(model, x, 0), y))
        found.append(model.optimizer)
    gram, ewc = found
    for (left, right), importance in zip(gram.factors, ewc.importances, strict=True):
        diagonal = left.get() if left.vectors is None else np.diag(left.get())
        expected = to_numpy(importance).reshape(-1)
        np.testing.assert_allclose(diagonal * right.get()[0, 0], expected, rtol=1e-4)
    assert gram.factors[0][0].vectors is None


@pytest.mark.once
def test_a_temperature_lets_examples_count_of_which_the_model_is_sure(monkeypatch):
    monkeypatch.setattr(fisher, "BATCH_SIZE", 1)  # Then sure examples hardly vary.
    traces = []
    for temperature in (1.0, 4.0):
        gram = Gram("sgd", temperature=temperature, examples=800)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = build(keras.layers.Dense(2, use_bias=False), (2,), gram, loss)
        gram.build(model.trainable_variables)
        model.layers[-1].kernel.assign([[0.0, 0.0], [0.0, 8.0]])
        # Of half of the examples the model is sure, of the others it knows nothing.
        x = np.tile(np.eye(2, dtype="float32"), (400, 1))
        gram.end_task(model, (inputs(model, x, 0), np.zeros(800, "int32")))
        left, right = (factor.get() for factor in gram.factors[0])
        p = 1 / (1 + np.exp(np.array([0.0, 8.0]) / temperature))
        sizes = p * (1 - p)  # Of the variance of either logit's gradient.
        np.testing.assert_allclose(np.diag(left), sizes / sizes.sum(), atol=0.05)
        traces.append(np.trace(right))
        np.testing.assert_allclose(traces[-1], sizes.sum(), rtol=0.1)
    assert traces[1] > 1.2 * traces[0]


def test_every_kind_of_weight():
    image = keras.Input((4, 4, 2), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = PSPConv2D(4, 3, num_tasks=2, bias_per_task=True)(image, task)
    x = keras_psp.layers.TaskBatchNormalization(2)(x, task)
    x = keras.layers.Reshape((4, 4))(x)
    x = keras_psp.layers.PSPEinsumDense("btd,dhe->bthe", (4, 2, 3), 2)(x, task)
    x = keras.layers.Flatten()(x)
    logits = keras_psp.layers.TaskDense(3, 2)(x, task)
    model = keras_psp.models.TaskModel({"image": image, "task": task}, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(Gram("adam", every=2), loss)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(32, 4, 4, 2)).astype("float32")
    y = rng.integers(3, size=32)
    for task in range(2):
        given = {"image": x, "task": np.full(32, task, "int32")}
        before = model.get_weights()
        model.fit(given, y, batch_size=8, verbose=0)
        model.optimizer.end_task(model, (given, y))
        assert any(
            (a != b).any() for a, b in zip(before, model.get_weights(), strict=True)
        )
    factors = keras.tree.flatten(model.optimizer.factors)
    assert all(to_numpy(factor.values).max() > 0 for factor in factors)


def test_bad_input(tmp_path):
    for arguments, error, match in (
        (dict(every=0), ValueError, "`every` must be a positive integer"),
        (dict(largest=1.5), TypeError, "`largest` must be a positive integer"),
        (dict(temperature=0), ValueError, "`temperature` must be a number in "),
        (dict(decay=-1), ValueError, r"`decay` must be a number in \[0, 1\]"),
        (dict(labels="dat"), ValueError, "Did you mean 'data'"),
    ):
        with pytest.raises(error, match=match):
            Gram(**arguments)
    gram, x_y = Gram("sgd", every=1), draw(7)
    model = build(PSPDense(1, num_tasks=2), (4,), gram)
    given = inputs(model, x_y[0], 0), x_y[1]
    with pytest.raises(ValueError, match="No task has been trained yet"):
        gram.end_task(model, given)
    train(model, *x_y, steps=2)
    state = [to_numpy(v) for v in (*gram.variables, *model.variables)]
    other = build(PSPDense(1, num_tasks=2), (4,), "sgd")
    with pytest.raises(ValueError, match="must be the one that this optimizer"):
        gram.end_task(other, given)
    narrow = inputs(model, x_y[0][:, :3], 0), x_y[1]
    with pytest.raises(ValueError):
        gram.end_task(model, narrow)
    wrong = inputs(model, x_y[0], 2), x_y[1]
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\)"):
        gram.end_task(model, wrong)
    nan = inputs(model, np.nan * x_y[0], 0), x_y[1]
    with pytest.raises(ValueError, match="NaN or inf in those of .*kernel"):
        gram.end_task(model, nan)
    with pytest.raises(ValueError, match="at least one example"):
        gram.end_task(model, [])
    with pytest.raises(TypeError, match="`data` must hold arrays.*NoneType"):
        gram.end_task(model)
    for old, variable in zip(state, (*gram.variables, *model.variables), strict=True):
        np.testing.assert_array_equal(to_numpy(variable), old)
    gram.end_task(model, given)  # Nothing of it has done harm.
    model.save_weights(tmp_path / "model.weights.h5")
    twin = build(PSPDense(1, num_tasks=2), (4,), Gram("sgd", largest=2))
    twin.optimizer.build(twin.trainable_variables)
    with pytest.raises(ValueError, match="not the variables of 'gram' for this model"):
        twin.load_weights(tmp_path / "model.weights.h5")
