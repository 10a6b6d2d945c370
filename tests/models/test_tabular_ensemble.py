import keras
import numpy as np
import pytest
from keras import ops

from keras_psp.models import tabular_ensemble


def to_numpy(x):
    return ops.convert_to_numpy(x)


def make(**kwargs):
    given = {"num_members": 3, "units": 5, "depth": 2, "dropout": 0.0}
    return tabular_ensemble(4, 2, **(given | kwargs))


def members(model, x):
    """What each member answers, computed with NumPy."""
    hidden, head = model.hidden, model.head
    scales = {layer.name: layer for layer in model.scales}
    answers = []
    for k in range(model.num_members):
        h = x * to_numpy(hidden[0].context.contexts)[k]
        for i, layer in enumerate(hidden):
            if f"before_{i}" in scales:
                h = h * to_numpy(scales[f"before_{i}"].scale)[k]
            h = h @ to_numpy(layer.kernel)
            if layer.bias is not None:
                h = h + to_numpy(layer.bias)
            if f"behind_{i}" in scales:
                behind = scales[f"behind_{i}"]
                h = h * to_numpy(behind.scale)[k] + to_numpy(behind.bias)[k]
            h = np.maximum(h, 0)
        answers.append(h @ to_numpy(head.kernel)[k] + to_numpy(head.bias)[k])
    return np.stack(answers, axis=1)


@pytest.mark.parametrize("adapters", ["first", "all"])
def test_it_answers_with_the_mean_of_its_members(adapters, tmp_path):
    model = make(adapters=adapters)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    y = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(x, y, epochs=2, verbose=0)
    found = members(model, x)
    np.testing.assert_allclose(to_numpy(model(x, training=True)), found, atol=1e-5)
    expected = found.mean(axis=1)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert len({answer.tobytes() for answer in found.swapaxes(0, 1)}) == 3
    loss = np.mean((found - y[:, None]) ** 2)
    np.testing.assert_allclose(model.train_on_batch(x, y)[0], loss, rtol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


def test_it_learns_classes_with_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    model = make(activation="softmax", units=32, num_members=8)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    weight = np.ones(200)
    history = model.fit(x, y, sample_weight=weight, epochs=15, verbose=0).history
    assert history["accuracy"][-1] > 0.9
    answers = model.predict(x[:5], verbose=0)
    np.testing.assert_allclose(answers.sum(axis=1), np.ones(5), rtol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"num_members": 0}, ValueError, "num_members=0"),
        ({"units": 1.5}, TypeError, "units=1.5"),
        ({"dropout": 2.0}, ValueError, "dropout=2.0"),
        ({"adapters": "some"}, ValueError, "'some'"),
        ({"seed": -1}, ValueError, "seed=-1"),
    ],
)
def test_bad_arguments(given, error, match):
    with pytest.raises(error, match=match):
        make(**given)
