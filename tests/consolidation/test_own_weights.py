"""What each task has of its own is left alone by consolidations around a PerTask."""

import keras
import numpy as np
import pytest
from conftest import once
from layer_checks import to_numpy

from keras_psp.consolidation import EWC
from keras_psp.consolidation import Freeze
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.models import mlp
from keras_psp.optimizers import PerTask

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.integers(3, size=32)


def build(optimizer):
    model = mlp((6,), 3, num_tasks=2, units=5, depth=1, rank=2, head="multi")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def fit(model, task, epochs=3):
    given = {"image": X, "task": np.full(32, task, "int32")}
    model.fit(given, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return given, Y


def kernels(model):
    """The kernel that tasks share, and the parts of low rank of each."""
    dense = model.get_layer("dense_0")
    own = [
        dense.low_rank.first,
        dense.low_rank.second,
        model.get_layer("logits").kernel,
    ]
    return to_numpy(dense.kernel).copy(), [to_numpy(v).copy() for v in own]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gram(PerTask("adam", rates=3.0), every=2),
        lambda: EWC(PerTask("adam"), 1e6),
        once(lambda: SynapticIntelligence(PerTask("adam"), 1e3)),
    ],
)
def test_own_weights_are_trained_by_the_loss_alone(make):
    model = build(make())
    data = fit(model, 0)
    consolidation = model.optimizer
    consolidation.end_task(model, data)
    protected = [a is not None for a in consolidation.anchors]
    rows = [v.shape[0] == 2 for v in model.trainable_variables]
    assert protected == [not row for row in rows] and sum(protected) == 1
    shared, own = kernels(model)
    fit(model, 1)
    after, of_tasks = kernels(model)
    assert np.abs(after - shared).max() > 0
    assert float(to_numpy(consolidation.penalty())) > 0
    for old, new in zip(own, of_tasks, strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        assert np.abs(new[1] - old[1]).max() > 1e-4
    consolidation.end_task(model, fit(model, 1))


@pytest.mark.parametrize("averaged", [once(False), True])
def test_freeze_trains_own_weights_alone(averaged, tmp_path):
    adam = keras.optimizers.Adam(0.01, use_ema=averaged, ema_momentum=0.5)
    model = build(Freeze(PerTask(adam)))
    start, _ = kernels(model)
    data = fit(model, 0)
    shared, own = kernels(model)
    assert np.abs(shared - start).max() > 1e-3
    model.optimizer.end_task(model, data)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    fit(model, 1)
    after, of_tasks = kernels(model)
    np.testing.assert_array_equal(after, shared)
    for old, new in zip(own, of_tasks, strict=True):
        np.testing.assert_array_equal(new[0], old[0])
        assert np.abs(new[1] - old[1]).max() > 1e-4
    assert float(to_numpy(model.optimizer.penalty())) == 0


@pytest.mark.once
def test_a_task_ends_once(tmp_path):
    makers = (Gram, EWC, SynapticIntelligence, Freeze)
    for make in makers:
        model = build(make(PerTask("sgd")))
        with pytest.raises(ValueError, match="No task has been trained yet"):
            model.optimizer.end_task(model, ({"image": X, "task": 0 * Y}, Y))
        data = fit(model, 0, epochs=1)
        model.optimizer.end_task(model, data)
        before = [to_numpy(v).copy() for v in model.optimizer.variables]
        with pytest.raises(ValueError, match="no step since the last task ended"):
            model.optimizer.end_task(model, data)
        for old, variable in zip(before, model.optimizer.variables, strict=True):
            np.testing.assert_array_equal(to_numpy(variable), old)
        model.save_weights(tmp_path / "model.weights.h5")
        again = build(make(PerTask("sgd")))
        again.load_weights(tmp_path / "model.weights.h5")
        with pytest.raises(ValueError, match="no step since the last task ended"):
            again.optimizer.end_task(again, data)
        for each in (model, again):
            each.optimizer.end_task(each, fit(each, 1, epochs=1))
    with pytest.raises(ValueError, match="around a `keras_psp.optimizers.PerTask`"):
        Freeze(keras.optimizers.SGD())
