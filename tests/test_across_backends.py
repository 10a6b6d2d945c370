"""What one backend writes, the others read: the same answer everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import own_model
import pytest
from conftest import BACKEND

from keras_psp import contexts
from keras_psp.layers._task_copies import make_copies
from keras_psp.models import mlp

WRITE = """
import sys
import keras
import numpy as np
import keras_psp
from keras_psp import contexts
from keras_psp.models import mlp
from own_model import TwoInAttributes

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
converted = keras_psp.convert(TwoInAttributes(), 2, context=None, rank=2)
parts = [w for w in converted.trainable_weights if "low_rank" in w.path]
assert len(parts) == 4
for i, part in enumerate(parts):
    part.assign(np.random.default_rng(i).normal(size=part.shape))
converted.save(folder + "/two.keras")
given = {"x": x[:, :4], "task": np.arange(40) % 2}
two = converted.predict(given, verbose=0)
np.savez(folder + "/answers.npz", logits=logits, x=x, two=two, **weights, **bound)
"""


# Round in a ring; test_golden.py reads what all backends have written.
OTHER = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}


@pytest.mark.parametrize("other", [OTHER[BACKEND]])
def test_written_by(other, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "KERAS_BACKEND": other, "PYTHONPATH": path}
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    subprocess.run(command, env=environment, check=True)
    answers = np.load(tmp_path / "answers.npz")
    inputs = {"image": answers["x"], "task": np.arange(40) % 20}
    model = keras.saving.load_model(tmp_path / "model.keras")
    logits = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(logits, answers["logits"], rtol=1e-5, atol=1e-5)
    two = keras.saving.load_model(tmp_path / "two.keras")
    inputs_of_two = {"x": answers["x"][:, :4], "task": np.arange(40) % 2}
    found = two.predict(inputs_of_two, verbose=0)
    np.testing.assert_allclose(found, answers["two"], rtol=1e-5, atol=1e-5)
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


def test_copies_have_one_order_in_files():
    model, store = own_model.TwoInAttributes(), {}
    make_copies(model, 2)
    model.save_own_variables(store)
    shapes = [tuple(store[str(i)].shape) for i in range(4)]
    rows = [store[f"new_row.copies_{i}"].shape for i in range(4)]
    assert [(2, *row) for row in rows] == shapes
    assert shapes == [(2, 4, 5), (2, 5), (2, 5, 4), (2, 4)]
    values = [np.random.default_rng(i).normal(size=x) for i, x in enumerate(shapes)]
    model.load_own_variables({str(i): x for i, x in enumerate(values)})
    again: dict = {}
    model.save_own_variables(again)
    for i, value in enumerate(values):
        np.testing.assert_allclose(again[str(i)], value, rtol=1e-6)
