import keras
import numpy as np

from keras_psp.datasets import permuted
from keras_psp.models import mlp


def test_a_model_trains_on_a_stream(rng):
    x = rng.integers(0, 256, size=(50, 3, 4, 2), dtype="uint8")
    y = np.arange(50) % 5
    tasks = permuted(((x[:40], y[:40]), (x[40:], y[40:])), num_tasks=2)
    model = mlp(tasks.image_shape, tasks.num_classes, tasks.num_tasks, units=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(tasks.stream(2, 8), shuffle=False, verbose=0)
    logs = model.evaluate(tasks.test(1, 5), verbose=0, return_dict=True)
    assert 0 <= logs["accuracy"] <= 1
