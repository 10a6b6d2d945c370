import keras
import numpy as np
import pytest
from layer_checks import to_numpy

from keras_psp.consolidation import CosineEachTask


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_every_task_warms_up_and_comes_to_rest(steps):
    schedule = CosineEachTask(0.3, steps)
    schedule = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    w, i = max(1, steps // 10), np.arange(steps)
    falling = (1 + np.cos(np.pi * (i - w) / max(1, steps - w))) / 2
    expected = 0.3 * np.where(i < w, (1 + (w - 1) * i / w) / w, falling)
    found = [float(to_numpy(schedule(step))) for step in range(3 * steps)]
    np.testing.assert_allclose(found, np.tile(expected, 3), rtol=1e-5, atol=1e-7)


def test_an_optimizer_follows_it():
    # Whose step is the learning rate: the gradient is 1.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    schedule = CosineEachTask(0.5, 20)
    model.compile(keras.optimizers.SGD(schedule), lambda y, y_pred: y_pred)
    x = np.zeros((30, 1), "float32")
    before = float(to_numpy(model.layers[0].bias)[0])
    model.fit(x, x, batch_size=1, verbose=0)
    gone = before - float(to_numpy(model.layers[0].bias)[0])
    rates = [float(to_numpy(schedule(step))) for step in range(30)]
    assert gone == pytest.approx(sum(rates), rel=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        CosineEachTask(0.1, 0)
    with pytest.raises(TypeError, match="`learning_rate` must be a number"):
        CosineEachTask("0.1", 10)
