"""Keras' own exports, and torch's: programs recorded from a sample of one task."""

import keras
import numpy as np
import pytest
from conftest import BACKEND

from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense
from keras_psp.models import TaskModel

NUM_TASKS = 3


def build(rows: bool = True) -> TaskModel:
    image = keras.Input((4,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = PSPDense(4, NUM_TASKS, base=True, bias_per_task=rows, rank=2)(image, task)
    if rows:
        x = TaskDense(3, NUM_TASKS)(x, task)
    model = TaskModel({"image": image, "task": task}, x)
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    return model


def jit_trace(model, path):
    import torch

    class Positional(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image, task):
            return self.model({"image": image, "task": task})

    sample = torch.ones(2, 4), torch.ones(2, dtype=torch.int32)
    with torch.no_grad():
        traced = torch.jit.trace(Positional(), sample)

    def call(x):
        image, task = torch.from_numpy(x["image"]), torch.from_numpy(x["task"])
        return traced(image, task).detach()

    return call


def onnx(model, path):
    import onnxruntime

    model.export(f"{path}.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(f"{path}.onnx")
    return lambda x: session.run(None, x)[0]


def openvino(model, path):
    import openvino

    model.export(f"{path}.xml", format="openvino", verbose=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(f"{path}.xml", "CPU", exact)
    return lambda x: compiled(x).to_tuple()[0]


def saved_model(model, path):
    import tensorflow as tf

    model.export(path, format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(path)
    return lambda x: served.serve({k: tf.constant(value) for k, value in x.items()})


TRACERS = {
    "torch": (jit_trace, onnx, openvino),
    "tensorflow": (saved_model,),
    "jax": (saved_model,),
}


# Keras compares shapes, which torch counts as reading a tensor. And its own export to
# ONNX uses torch's older exporter, and that one an older function.
@pytest.mark.filterwarnings("ignore:.*might cause the trace to be incorrect")
@pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.parametrize("trace", TRACERS[BACKEND], ids=lambda trace: trace.__name__)
def test_traces_keep_the_task_an_input(trace, tmp_path):
    """The sample that is traced holds task 1 alone; the program answers every task."""
    # ONNX and OpenVINO cannot hold `keras.ops.take()` as torch traces it: an error.
    model = build(rows=trace in (jit_trace, saved_model))
    rng = np.random.default_rng(0)
    image = rng.normal(size=(7, 4)).astype("float32")
    task = (np.arange(7) % NUM_TASKS).astype("int32")
    given = [task, np.zeros(7, "int32"), np.full(7, 2, "int32")]
    expected = [
        model.predict({"image": image, "task": each}, verbose=0) for each in given
    ]
    unknown, masked = task.copy(), expected[0].copy()
    unknown[4], masked[4] = NUM_TASKS, np.nan
    call = trace(model, str(tmp_path / "model"))
    for each, want in zip([*given, unknown], [*expected, masked], strict=True):
        found = np.asarray(call({"image": image, "task": each}))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
