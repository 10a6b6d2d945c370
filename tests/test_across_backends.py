"""What one backend writes, the others read: the same answer everywhere."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import BACKEND

from keras_psp import contexts
from keras_psp.models import mlp

WRITE = """
import sys
import keras
import numpy as np
from keras_psp import contexts
from keras_psp.models import mlp

folder = sys.argv[1]
model = mlp((8,), num_classes=3, num_tasks=20, units=32, learnable=True, seed=5)
fixed = mlp((8,), num_classes=3, num_tasks=20, units=32, seed=5)
model.save(folder + "/model.keras")
model.save_weights(folder + "/model.weights.h5")
x = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
inputs = {"image": x, "task": np.arange(40) % 20}
weights = {v.path: keras.ops.convert_to_numpy(v) for v in fixed.weights}
logits = model.predict(inputs, verbose=0)
bound = {}
for name in contexts.FAMILIES:
    context = contexts.get(name, num_tasks=20, seed=11)
    bound[name] = keras.ops.convert_to_numpy(context(np.tile(x, 6), inputs["task"]))
np.savez(folder + "/answers.npz", logits=logits, x=x, **weights, **bound)
"""


# Round in a ring; test_golden.py reads what all backends have written.
OTHER = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}


@pytest.mark.parametrize("other", [OTHER[BACKEND]])
def test_written_by(other, tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": other}
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
    answers = np.load(tmp_path / "answers.npz")
    inputs = {"image": answers["x"], "task": np.arange(40) % 20}
    model = keras.saving.load_model(tmp_path / "model.keras")
    logits = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(logits, answers["logits"], rtol=1e-5, atol=1e-5)
    new = mlp((8,), num_classes=3, num_tasks=20, units=32, learnable=True, seed=6)
    new.load_weights(tmp_path / "model.weights.h5")
    logits = new.predict(inputs, verbose=0)
    np.testing.assert_allclose(logits, answers["logits"], rtol=1e-5, atol=1e-5)
    fixed = mlp((8,), num_classes=3, num_tasks=20, units=32, seed=5)
    assert len(fixed.weights) == 8
    for weight in fixed.weights:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), answers[weight.path]
        )
    for name in contexts.FAMILIES:
        context = contexts.get(name, num_tasks=20, seed=11)
        bound = context(np.tile(answers["x"], 6), inputs["task"])
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(bound), answers[name], rtol=1e-5, atol=1e-5
        )
