import gc
import weakref

import keras
import numpy as np
import pytest
from conftest import some_once
from keras import ops

import keras_psp
from keras_psp import infer_task
from keras_psp import inference
from keras_psp import layers
from keras_psp import models
from keras_psp._core.backend import gradient

NUM_TASKS = 3
SIZES = {"num_classes": 10, "num_tasks": NUM_TASKS, "units": 512, "depth": 1}
METHODS = ["entropy", "energy", "gradient"]
# The gradient is the backend's own; the others are a few operations on the answers.
methods = pytest.mark.parametrize("method", some_once(METHODS, every=("gradient",)))


@pytest.fixture(scope="module")
def digits():
    """Digits, their pixels in three orders, and a model that has learned them."""
    sklearn = pytest.importorskip("sklearn.datasets")
    keras.utils.set_random_seed(0)
    x, y = sklearn.load_digits(return_X_y=True)
    x = x.astype("float32") / 16
    rng = np.random.default_rng(0)
    images = np.stack([x[:, rng.permutation(64)] for _ in range(NUM_TASKS)])
    model = models.mlp((64,), **SIZES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    train = {
        "image": images[:, :1500].reshape(-1, 64),
        "task": np.repeat(np.arange(NUM_TASKS, dtype="int32"), 1500),
    }
    y = np.tile(y[:1500], NUM_TASKS)
    model.fit(train, y, epochs=5, batch_size=128, verbose=0)
    return model, images[:, 1500:1628]


GOOD = np.ones((2, 6), "float32")


def small(**kwargs):
    return models.mlp((6,), **{**SIZES, "num_classes": 3, "units": 8, **kwargs})


def with_soft_contexts(model):
    soft = models.mlp((64,), **SIZES, soft=True)
    soft.set_weights(model.get_weights())
    return soft


@pytest.mark.parametrize(
    "method, at_least", [("entropy", 0.9), ("energy", 0.9), ("gradient", 0.7)]
)
def test_finds_the_task(digits, method, at_least):
    model, images = digits
    found = []
    for k in range(NUM_TASKS):
        tasks, confidences = infer_task(model, images[k], method)
        assert tasks.dtype == "int32" and confidences.dtype == "float32"
        assert tasks.shape == confidences.shape == (128,)
        assert (confidences >= 0).all() and (confidences <= 1).all()
        found.append(np.mean(tasks == k))
        task, confidence = infer_task(model, images[k], method, per="batch")
        assert task == k and 0 < confidence <= 1
        assert task.dtype == "int32" and confidence.dtype == "float32"
    assert np.mean(found) > at_least


@pytest.mark.parametrize("method", METHODS)
def test_the_surer_is_right_more_often(digits, method):
    model, images = digits
    tasks, confidences = infer_task(model, images.reshape(-1, 64), method)
    right = tasks == np.repeat(np.arange(NUM_TASKS), 128)
    sure = confidences > np.median(confidences)
    assert right[sure].mean() > right[~sure].mean()


def test_entropy_is_that_of_the_answers(digits):
    model, images = digits
    x = images[:, :32].reshape(-1, 64)
    entropy = []
    for k in range(NUM_TASKS):
        task = np.full(len(x), k, "int32")
        logits = model.predict({"image": x, "task": task}, verbose=0).astype("float64")
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        entropy.append(-(p * np.log(p)).sum(axis=1))
    tasks, confidences = infer_task(model, x)
    np.testing.assert_array_equal(tasks, np.argmin(entropy, axis=0))
    best, second = np.sort(entropy, axis=0)[:2]
    expected = (second - best) / (second + best)
    np.testing.assert_allclose(confidences, expected, rtol=1e-3, atol=1e-3)


def test_gradient_is_that_of_a_mixture(digits):
    model, images = digits
    x = images[:, :32].reshape(-1, 64)
    evidence = inference._by_gradient(
        model, x={"image": x}, batch_size=32, from_logits=True
    )
    soft = with_soft_contexts(model)

    def entropy(weights):
        logits = soft.predict({"image": x, "task": weights}, verbose=0)
        return ops.convert_to_numpy(inference.entropy(logits, True))

    for k in range(NUM_TASKS):
        step = 0.002 * np.eye(NUM_TASKS, dtype="float32")[k]
        weights = np.full((len(x), NUM_TASKS), 1 / NUM_TASKS, "float32")
        difference = (entropy(weights + step) - entropy(weights - step)) / 0.004
        close = np.isclose(-evidence[:, k], difference, rtol=0.02, atol=0.01)
        assert close.mean() > 0.95  # A unit may turn on or off between the two.


def test_gradient_of_a_function():
    x = ops.convert_to_tensor([[1.0, 2.0], [3.0, 4.0]])
    result = ops.convert_to_numpy(gradient(lambda x: ops.sum(x**2), x))
    np.testing.assert_allclose(result, [[2, 4], [6, 8]])


def test_contexts_that_tell_nothing():
    tasks, confidences = infer_task(small(context="identity"), GOOD, "gradient")
    assert (tasks == 0).all() and (confidences == 0).all()


@pytest.mark.once
def test_parts_of_low_rank_tell_tasks_apart(rng):
    model = small(rank=2, head="multi", context="identity")
    low_rank = model.get_layer("dense_0").low_rank
    low_rank.second.assign(rng.normal(size=low_rank.second.shape))
    x = rng.normal(size=(20, 6)).astype("float32")
    answers = [
        keras.activations.softmax(model({"image": x, "task": np.full(20, k)}))
        for k in range(NUM_TASKS)
    ]
    answers = np.stack([ops.convert_to_numpy(each) for each in answers])
    entropies = -(answers * np.log(answers)).sum(axis=-1)
    tasks, _ = infer_task(model, x)
    np.testing.assert_array_equal(tasks, entropies.argmin(axis=0))
    assert len(set(tasks)) > 1


def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for method in METHODS:
            tasks, confidences = infer_task(small(), GOOD, method)
            assert tasks.shape == (2,) and np.isfinite(confidences).all()
    finally:
        keras.config.set_dtype_policy("float32")


@methods
def test_soft_models_give_equal_answers(digits, method):
    model, images = digits
    soft = with_soft_contexts(model)
    x = images[:, :32].reshape(-1, 64)
    for a, b in zip(
        infer_task(model, x, method), infer_task(soft, x, method), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@methods
def test_batch_size_and_input_form_do_not_matter(digits, method):
    model, images = digits
    x = images[:, :32].reshape(-1, 64)
    expected = infer_task(model, x, method)
    for again in (
        infer_task(model, x, method, batch_size=7),
        infer_task(model, {"image": ops.convert_to_tensor(x)}, method, batch_size=1000),
        infer_task(model, x[:, :, None], method),
    ):
        np.testing.assert_array_equal(again[0], expected[0])
        np.testing.assert_allclose(again[1], expected[1], rtol=1e-3, atol=1e-4)
    one, _ = infer_task(model, x[:1], method)
    assert one[0] == expected[0][0]


def test_energy_is_that_of_the_logits(digits):
    model, images = digits
    x = images[:, :32].reshape(-1, 64)
    energy = []
    for k in range(NUM_TASKS):
        task = np.full(len(x), k, "int32")
        logits = model.predict({"image": x, "task": task}, verbose=0).astype("float64")
        energy.append(np.log(np.exp(logits).sum(axis=1)))
    tasks, _ = infer_task(model, x, "energy")
    np.testing.assert_array_equal(tasks, np.argmax(energy, axis=0))


@pytest.mark.parametrize("method", ["entropy", "gradient"])
def test_probabilities(digits, method):
    model, images = digits
    p = models.TaskModel(model.input, keras.layers.Softmax()(model.output))
    x = images[:, :32].reshape(-1, 64)
    expected, _ = infer_task(model, x, method)
    tasks, _ = infer_task(p, x, method, from_logits=False)
    assert np.mean(tasks == expected) > 0.95
    np.testing.assert_array_equal(tasks, infer_task(p, x, method)[0])


def ending_in(activation):
    """A model whose answers an activation has made."""

    def make():
        image, task = small().input.values()
        layer = layers.PSPDense(3, NUM_TASKS, activation=activation)
        return models.TaskModel({"image": image, "task": task}, layer(image, task))

    return make


def with_last(*last):
    """A model whose logits go through more layers."""

    def make():
        model = small()
        outputs = model.output
        for layer in last:
            outputs = layer(outputs)
        return models.TaskModel(model.input, outputs)

    return make


def nested(kind):
    def make():
        x = keras.Input((6,), name="image")
        inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, kind)])
        return keras_psp.convert(keras.Model(x, inner(x)), NUM_TASKS)

    return make


def nested_with_two_outputs():
    x, y = keras.Input((6,), name="image"), keras.Input((6,))
    inner = keras.Model(
        y, [keras.layers.Dense(3, kind)(y) for kind in ("softmax", None)]
    )
    return keras_psp.convert(keras.Model(x, inner(x)[0]), NUM_TASKS)


def softmax(x):
    """A function of the user's own, with the name of Keras'."""
    return 3.0 * x


class Reshape(keras.layers.Layer):
    """Likewise."""

    def call(self, inputs):
        return ops.exp(inputs)


@pytest.mark.parametrize(
    "make, expected",
    [
        (small, True),
        (lambda: small(head="multi"), True),
        (lambda: small(head="shared"), True),
        (lambda: small(complex_valued=True, context="complex"), True),
        (ending_in("log_softmax"), True),
        (ending_in("softmax"), False),
        (ending_in("sigmoid"), False),
        (ending_in(keras.activations.softmax), False),
        (with_last(keras.layers.Softmax()), False),
        (with_last(keras.layers.Activation("softmax")), False),
        (with_last(keras.layers.Activation("linear")), True),
        (with_last(ops.softmax), False),
        (with_last(ops.sigmoid, keras.layers.Activation("linear")), False),
        (with_last(keras.layers.Softmax(), keras.layers.Dropout(0.1)), False),
        (with_last(keras.layers.Reshape((3,))), True),
        (nested(None), True),
        (nested("softmax"), False),
        (nested_with_two_outputs, False),
    ],
)
def test_the_last_activation_tells_what_answers_are(make, expected):
    assert inference.gives_logits(make()) is expected


@pytest.mark.parametrize(
    "last",
    [
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Activation(softmax),
        Reshape(),
        lambda x: x + 1.0,
    ],
)
def test_an_activation_that_does_not_tell_is_asked_for(last):
    model = with_last(last)()
    with pytest.raises(ValueError, match="`from_logits` must be `True` if.*None"):
        infer_task(model, GOOD)
    assert infer_task(model, GOOD, from_logits=True)[0].shape == (2,)


def test_several_outputs_are_refused_by_their_names():
    x = keras.Input((6,), name="image")
    outputs = {name: keras.layers.Dense(3)(x) for name in ("price", "churn")}
    model = keras_psp.convert(keras.Model(x, outputs), NUM_TASKS)
    with pytest.raises(ValueError, match="one output.*'price': .None, 3."):
        infer_task(model, GOOD)


def data_of_every_form(x):
    """The same inputs in every form; some with labels."""
    tf, torch = pytest.importorskip("tensorflow"), pytest.importorskip("torch")
    y = np.zeros(len(x), "int32")
    halves = [x[:5], x[5:]]

    class Halves(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, index):
            return halves[index], y[:1].repeat(len(halves[index]))

    yield from (x, [x], {"image": x}, (x, y), ({"image": x}, y), [(x, y)])
    yield from (halves, [{"image": half} for half in halves], iter(halves), Halves())
    yield from (
        tf.data.Dataset.from_tensor_slices(part).batch(5) for part in (x, (x, y))
    )
    tensors = torch.utils.data.TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    yield torch.utils.data.DataLoader(tensors, batch_size=5)


@methods
def test_every_form_of_data_gives_the_same_tasks(rng, method):
    model, x = small(), rng.normal(size=(12, 6)).astype("float32")
    tasks, confidences = infer_task(model, x, method)
    for data in data_of_every_form(x):
        found = infer_task(model, data, method)
        np.testing.assert_array_equal(found[0], tasks)
        np.testing.assert_allclose(found[1], confidences, atol=1e-6)


def test_several_inputs(rng):
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    task = keras.Input((), dtype="int32", name="task")
    logits = layers.PSPDense(3, NUM_TASKS)(keras.layers.Concatenate()([a, b]), task)
    model = models.TaskModel({"a": a, "b": b, "task": task}, logits)
    x = rng.normal(size=(10, 6)).astype("float32")
    both = keras.Input((6,), name="x")
    logits = model.layers[-1](both, task)
    single = models.TaskModel({"x": both, "task": task}, logits)
    tasks, _ = infer_task(model, {"a": x[:, :4], "b": x[:, 4:]}, "gradient")
    np.testing.assert_array_equal(tasks, infer_task(single, x, "gradient")[0])


@methods
def test_the_model_stays_as_it_was(digits, method, tmp_path):
    model, images = digits
    before = [np.array(w) for w in model.get_weights()]
    config = model.to_json()
    infer_task(model, images[0], method)
    assert model.to_json() == config and model.optimizer is not None
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(
        infer_task(again, images[0], method),
        infer_task(model, images[0], method),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@methods
def test_a_model_that_learns_and_grows(method, rng):
    model, x = small(), rng.normal(size=(30, 6)).astype("float32")
    first, _ = infer_task(model, x, method)
    model.set_weights(
        [2 * w if w.dtype == "float32" else w for w in small(seed=3).get_weights()]
    )
    second, _ = infer_task(model, x, method)
    other = small()
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(second, infer_task(other, x, method)[0])
    assert (first != second).any()
    model.add_tasks(3)
    assert infer_task(model, x, method)[0].max() >= NUM_TASKS


@methods
def test_models_inside_a_model(method):
    x = keras.Input((6,), name="image")
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, "relu")])
    plain = keras.Model(x, keras.layers.Dense(3)(inner(x)))
    nested = keras_psp.convert(plain, NUM_TASKS)
    for weight in nested.trainable_variables:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    tasks, confidences = infer_task(nested, GOOD, method)
    flat = keras_psp.convert(
        keras.Sequential(
            [keras.Input((6,), name="image"), *inner.layers, plain.layers[-1]]
        ),
        NUM_TASKS,
    )
    flat.set_weights(nested.get_weights())
    expected = infer_task(flat, GOOD, method)
    np.testing.assert_array_equal(tasks, expected[0])
    np.testing.assert_allclose(confidences, expected[1], rtol=1e-3, atol=1e-4)


def test_always_normalized_by_the_batch(rng):
    image, task = small().input.values()
    x = layers.PSPDense(8, NUM_TASKS)(image, task)
    x = keras.layers.BatchNormalization()(x, training=True)
    logits = layers.PSPDense(3, NUM_TASKS)(x, task)
    model = models.TaskModel({"image": image, "task": task}, logits)
    before = [np.array(w) for w in model.get_weights()]
    tasks, _ = infer_task(model, rng.normal(size=(6, 6)), "gradient")
    assert tasks.shape == (6,)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_keeps_a_model_alive(rng):
    model = small()
    infer_task(model, rng.normal(size=(2, 6)).astype("float32"), "gradient")
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def plain():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def with_two_outputs():
    model = small()
    outputs = {
        "price": keras.layers.Dense(1, name="price")(model.output),
        "churn": keras.layers.Dense(2, name="churn")(model.output),
    }
    return models.TaskModel(model.input, outputs)


@pytest.mark.parametrize(
    "make, x, options, error, message",
    [
        (small, GOOD, {"method": "entrpy"}, ValueError, "Did you mean 'entropy'"),
        (
            small,
            GOOD,
            {"method": "energy", "from_logits": False},
            ValueError,
            "needs logits",
        ),
        (small, GOOD, {"per": "task"}, ValueError, "`per`. Known: batch, example"),
        (small, GOOD, {"batch_size": 0}, ValueError, "batch_size=0"),
        (small, GOOD, {"batch_size": 1.5}, TypeError, "batch_size=1.5"),
        (plain, GOOD, {}, TypeError, "TaskModel.*type Sequential"),
        (with_two_outputs, GOOD, {}, ValueError, "one output, .*'churn': .*'price'"),
        (lambda: small(num_tasks=1), GOOD, {}, ValueError, "nothing to infer"),
        (small, GOOD[:, :5], {}, ValueError, r"'image' of shape \(None, 6\).*\(2, 5\)"),
        (small, GOOD[0], {}, ValueError, r"'image' of shape \(None, 6\).*\(6,\)"),
        (small, GOOD[:0], {}, ValueError, r"at least one example.*\(0, 6\)"),
        (small, [], {}, ValueError, "`x` must hold at least one example"),
        (small, iter(()), {}, ValueError, "`x` must hold at least one example"),
        (small, [GOOD[:0]], {}, ValueError, "`x` must hold at least one example"),
        (small, (GOOD, GOOD), {}, ValueError, "two batches and as"),
        (small, None, {}, TypeError, "`x` must hold arrays.*None"),
        (small, "images", {}, TypeError, "`x` must hold arrays.*str"),
        (small, GOOD.astype(str), {}, TypeError, "must hold numbers.*'image'"),
        (small, {"imgae": GOOD}, {}, ValueError, "'imgae'.*did you mean 'image'"),
        (small, GOOD * np.nan, {}, ValueError, "finite. Received: NaN or inf in 'im"),
        (small, {}, {}, ValueError, r"the inputs \['image'\]. Received: \[\]"),
        (small, {"image": GOOD, "task": GOOD}, {}, ValueError, "'task' is unknown"),
        (ending_in("relu"), GOOD, {}, ValueError, "from_logits.*'relu'"),
        (ending_in("softmax"), GOOD, {"method": "energy"}, ValueError, "needs logits"),
        (lambda: small(num_classes=1), GOOD, {}, ValueError, "at least two classes"),
    ],
)
def test_bad_arguments(make, x, options, error, message):
    with pytest.raises(error, match=message):
        infer_task(make(), x, **options)


def test_inputs_of_different_lengths():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    task = keras.Input((), dtype="int32", name="task")
    logits = layers.PSPDense(3, NUM_TASKS)(keras.layers.Add()([a, b]), task)
    model = models.TaskModel({"a": a, "b": b, "task": task}, logits)
    x = np.ones((3, 4), "float32")
    with pytest.raises(ValueError, match="equally many.*'a': 3, 'b': 2"):
        infer_task(model, {"a": x, "b": x[:2]})
    with pytest.raises(ValueError, match=r"\['a', 'b'\]. Received: array of shape"):
        infer_task(model, x)
    np.testing.assert_array_equal(
        infer_task(model, [x, x])[0], infer_task(model, {"a": x, "b": x})[0]
    )


def test_layers_without_contexts():
    image, task = small().input.values()
    norm = layers.TaskBatchNormalization(NUM_TASKS)(image, task)
    logits = layers.PSPDense(3, NUM_TASKS)(norm, task)
    normalized = models.TaskModel({"image": image, "task": task}, logits)
    for model in (small(head="multi"), normalized):
        with pytest.raises(ValueError, match="layers that all take soft contexts"):
            infer_task(model, GOOD, "gradient")
        assert infer_task(model, GOOD)[0].shape == (2,)


@methods
def test_answers_that_are_not_finite(method):
    model = small()
    model.trainable_variables[0].assign(model.trainable_variables[0] * np.nan)
    with pytest.raises(ValueError, match="finite. Received: NaN for 2 of 2 examples"):
        infer_task(model, GOOD, method)
