"""What `fit()` says when a task is trained alone after others; it can be silenced."""

import warnings

import keras
import numpy as np
import pytest
from conftest import once
from own_model import OwnModel

import keras_psp
from keras_psp import consolidation

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.arange(8) % 3
NAMES = ["paris", "tokyo", "lima"]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(optimizer="sgd", **options):
    options = {"units": 8, "depth": 1} | options
    model = keras_psp.models.mlp((6,), 3, num_tasks=NAMES, **options)
    model.compile(optimizer, LOSS)
    return model


def told(model, *tasks):
    """Trains on one task, or a mixture, after the other; returns what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", keras_psp.InterferenceWarning)
        for task in tasks:
            inputs = {"image": X, "task": np.resize(task, 8)}
            model.fit(inputs, Y, verbose=0)
            if hasattr(model.optimizer, "end_task"):
                model.optimizer.end_task(model, (inputs, Y))
    return [str(x.message) for x in caught]


def test_a_task_alone_after_another_is_told_once():
    model = make_model()
    assert told(model, "paris", "paris") == []
    (message,) = told(model, "tokyo")
    assert "task 'tokyo' is trained alone, after task 'paris', by weights" in message
    assert "`keras_psp.consolidation.Gram(optimizer)`" in message
    assert "mixed batches in one `fit()`" in message and "Off:" in message
    assert told(model, "lima", "paris") == []


@pytest.mark.parametrize(
    "optimizer, tasks",
    [
        once(lambda: "sgd", [NAMES, NAMES, ["paris", "tokyo"]]),
        once(lambda: consolidation.Gram("sgd"), NAMES),  # What the message names.
        once(lambda: consolidation.Freeze(keras_psp.optimizers.PerTask("sgd")), NAMES),
    ],
)
def test_it_is_silent_where_nothing_is_lost(optimizer, tasks):
    model = make_model(optimizer(), rank=1)
    assert told(model, *tasks) == []


@pytest.mark.once
def test_it_is_silent_where_tasks_share_no_weights_that_are_trained():
    plain = keras.Sequential([keras.Input((6,), name="image"), keras.layers.Dense(3)])
    for model in (
        keras_psp.convert(plain, NAMES, context=None, rank=2),
        keras_psp.stack(plain, num_tasks=NAMES),
    ):
        model.compile("sgd", LOSS)
        assert told(model, *NAMES) == []


@pytest.mark.once
def test_tasks_that_were_removed_lose_nothing():
    model = make_model()
    told(model, "paris")
    model.remove_task("paris")
    assert told(model, "tokyo") == []


@pytest.mark.once
def test_the_task_may_come_from_a_scope():
    model = OwnModel()
    model(X)
    model = keras_psp.convert(model, NAMES)
    model.compile("sgd", LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", keras_psp.InterferenceWarning)
        with keras_psp.task("paris"):
            model.fit(X, Y, verbose=0)
    with pytest.warns(keras_psp.InterferenceWarning, match="'tokyo' is trained alone"):
        with keras_psp.task("tokyo"):
            model.fit(X, Y, verbose=0)


@pytest.mark.once
def test_it_can_be_switched_off_and_its_file_is_the_users():
    model = make_model()
    told(model, "paris")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", keras_psp.InterferenceWarning)
        model.fit({"image": X, "task": np.full(8, 1)}, Y, verbose=0)
    model = make_model()
    told(model, "paris")
    with pytest.warns(keras_psp.InterferenceWarning) as caught:
        model.fit({"image": X, "task": np.full(8, 1)}, Y, verbose=0)
    assert caught[0].filename == __file__
