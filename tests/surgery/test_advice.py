"""Warnings where tasks will disturb each other; each can be switched off."""

import warnings

import keras
import numpy as np
import pytest

import keras_psp

pytestmark = pytest.mark.once


def small(units=9):
    return keras.Sequential(
        [
            keras.Input((9,), name="x"),
            keras.layers.Dense(300, name="first"),
            keras.layers.Dense(units, name="second"),
        ]
    )


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    kind = keras_psp.InterferenceWarning
    return [str(each.message) for each in caught if issubclass(each.category, kind)]


def test_convert_names_narrow_layers_with_numbers():
    (message,) = told(lambda: keras_psp.convert(small(), num_tasks=5))
    assert "'first' (9 inputs: 0.44)" in message and "'second'" not in message
    # What is expected is what is measured, of inputs of any sign.
    model = keras_psp.convert(small(), num_tasks=5)
    x = np.random.default_rng(0).normal(size=(500, 9)).astype("float32")
    found = keras_psp.diagnostics.interference(model, [x] * 5).layers[0]
    assert found.interference.mean() == pytest.approx(0.44, abs=0.1)
    assert found.verdict == "large"


@pytest.mark.parametrize(
    "options",
    [
        {"num_tasks": 5, "rank": 4},  # What the message names mends it.
        {"num_tasks": 5, "layers": ["second"]},
        {"num_tasks": 2},
        {"num_tasks": 5, "context": "identity"},
        {"num_tasks": 5, "context": None, "rank": 4},
    ],
)
def test_convert_is_silent_where_there_is_room(options):
    assert told(lambda: keras_psp.convert(small(), **options)) == []


def test_superpose_says_how_large_the_noise_is():
    models = [small() for _ in range(4)]
    x = np.ones((20, 9), "float32")
    (message,) = told(lambda: keras_psp.superpose(models))
    assert "3 others as noise, of 3 times the squared size" in message
    # It is so: of the first layer's kernel, for each task.
    one = keras_psp.superpose(models)
    for task, model in enumerate(models):
        own = model.get_layer("first").get_weights()[0]
        read = keras_psp.extract(one, task).get_layer("first").get_weights()[0]
        noise = np.square(read - own).sum() / np.square(own).sum()
        assert noise == pytest.approx(3, rel=0.2)
    for options in ({"base": models[0]}, {"data": [x] * 4}, {"bits": 8}):
        assert (
            told(lambda options=options: keras_psp.superpose(models, **options)) == []
        )


def test_a_warning_can_be_switched_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", keras_psp.InterferenceWarning)
        keras_psp.convert(small(), num_tasks=5)
        keras_psp.superpose([small(), small()])
