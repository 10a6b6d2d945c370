import numpy as np
import pytest

from keras_psp.benchmarks import FreshStart
from keras_psp.models import mlp


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_epoch_begins_anew(optimizer, rng):
    x = {"image": rng.normal(size=(8, 6)), "task": np.arange(8) % 2}
    y = rng.normal(size=(8, 3))
    weights = []
    for epochs, callbacks in ((1, []), (3, [FreshStart()]), (3, [])):
        model = mlp((6,), num_classes=3, num_tasks=2, units=4, depth=1)
        model.compile(optimizer, "mse")
        model.fit(x, y, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)
        weights.append(model.get_weights()[0])
    np.testing.assert_array_equal(weights[1], weights[0])
    assert not np.array_equal(weights[2], weights[0])
