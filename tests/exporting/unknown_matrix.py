"""The matrix of unknown tasks: layer x what follows it x where the model runs.

`python tests/exporting/unknown_matrix.py [--quick] [RUNTIME ...]` prints, for each
runtime that this backend can write, in how many cells an example of an unknown task got
an answer, or another example got none. All cells are outputs of one model: one export
checks them.
"""

import os
import sys
import tempfile

import keras
import numpy as np

from keras_psp import contexts
from keras_psp import layers
from keras_psp._core.task import unknown_answer
from keras_psp.exporting import _run_artifact as run_artifact
from keras_psp.exporting._formats import FORMATS
from keras_psp.exporting._write import write
from keras_psp.exporting.export import _output_names
from keras_psp.models import TaskModel

NUM_TASKS = 5
UNITS = 8  # Every layer answers with that many numbers.
BATCH = 11


def dense(family):
    context = contexts.get(family, NUM_TASKS)
    return lambda x, task: layers.PSPDense(UNITS, context=context)(x, task)


def on_rows(layer):
    """Calls a layer with inputs of shape `(4, 2)`."""

    def call(x, task):
        x = keras.layers.Reshape((4, 2))(x)
        return keras.layers.Flatten()(layer(x, task=task))

    return call


def attend(x, task):
    layer = layers.PSPMultiHeadAttention(2, 2, num_tasks=NUM_TASKS)
    x = keras.layers.Reshape((4, 2))(x)
    return keras.layers.Flatten()(layer(x, x, task=task))


LAYERS = {
    **{family: dense(family) for family in sorted(contexts.FAMILIES)},
    "base-bias": lambda x, task: layers.PSPDense(
        UNITS, NUM_TASKS, base=True, bias_per_task=True, rank=2
    )(x, task),
    "complex-dense": lambda x, task: layers.PSPComplexDense(
        UNITS // 2, num_tasks=NUM_TASKS
    )(x, task),
    "conv-kernel": on_rows(layers.PSPConv1D(2, 3, NUM_TASKS, padding="same")),
    "conv-channels": on_rows(
        layers.PSPConv1D(2, 3, NUM_TASKS, padding="same", context_over="channels")
    ),
    "einsum": on_rows(
        layers.PSPEinsumDense("abc,cd->abd", (4, 2), num_tasks=NUM_TASKS)
    ),
    "attention": attend,
    "depthwise": on_rows(
        layers.TaskDepthwiseConv1D(3, num_tasks=NUM_TASKS, padding="same")
    ),
    "task-dense": lambda x, task: layers.TaskDense(UNITS, NUM_TASKS)(x, task),
    "task-batch-norm": lambda x, task: layers.TaskBatchNormalization(NUM_TASKS)(
        x, task
    ),
    "task-embedding": lambda x, task: layers.TaskEmbedding(9, UNITS, NUM_TASKS)(
        x[:, 0], task
    ),
    "task-rms-norm": lambda x, task: layers.TaskRMSNormalization(NUM_TASKS)(x, task),
    "task-layer-norm": lambda x, task: layers.TaskLayerNormalization(NUM_TASKS)(
        x, task
    ),
}

FOLLOWING = {
    "nothing": lambda x: x,
    "softmax": keras.layers.Softmax(),
    "relu": lambda x: keras.layers.Dense(4, activation="relu")(x),
    "argmax": lambda x: keras.ops.argmax(x, axis=-1),
    "threshold": lambda x: keras.ops.cast(x > 0, "int32"),
    "batch-norm": lambda x: keras.layers.BatchNormalization()(x),
    "layer-norm": lambda x: keras.layers.LayerNormalization()(x),
    "attention": lambda x: keras.layers.MultiHeadAttention(2, 2)(
        rows := keras.layers.Reshape((4, 2))(x), rows
    ),
}


def build(names, left_out=()) -> TaskModel:
    image = keras.Input((UNITS,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    outputs = {}
    for name in names:
        x = LAYERS[name](image, task)
        for following, call in FOLLOWING.items():
            if following not in left_out:
                outputs[f"{name}+{following}"] = call(x)
    return TaskModel({"image": image, "task": task}, outputs)


def requests():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, UNITS)).astype("float32")
    task = (np.arange(BATCH) % NUM_TASKS).astype("int32")
    wrong = task.copy()
    wrong[[1, 4, 7]] = NUM_TASKS, -1, 2**31 - 1
    yield {"image": image, "task": wrong}
    yield {"image": image, "task": np.full(BATCH, NUM_TASKS, "int32")}
    yield {"image": image[:1], "task": np.array([-(2**31)], "int32")}


def wrong_cells(call) -> set[str]:
    """Returns the outputs in which an unknown task is answered, or another is not."""
    wrong = set()
    for x in requests():
        known = (x["task"] >= 0) & (x["task"] < NUM_TASKS)
        try:
            found = call(x)
        except ValueError as error:  # Where tasks can be read they are refused.
            if f"must lie in [0, {NUM_TASKS})" not in str(error):
                raise
            continue
        for name, value in found.items():
            value = np.asarray(value)
            value = value.reshape(len(value), -1)
            if value.dtype.kind in "iu":
                answered = value != unknown_answer(value.dtype.name)
            else:
                answered = ~np.isnan(value)
            if (answered != known[:, None]).any():
                wrong.add(name)
    return wrong


def runtime(model, name, folder):
    """Returns a function of a request: the model as it runs in `name`."""
    if name == "predict":
        return lambda x: model.predict(x, verbose=0)
    if name == "torch.compile":
        import torch

        compiled = torch.compile(model, backend="aot_eager")

        def call(x):
            with torch.no_grad():
                found = compiled({k: torch.from_numpy(v) for k, v in x.items()})
            return {k: v.numpy() for k, v in found.items()}

        return call
    path = os.path.join(folder, f"model{FORMATS[name].suffix}")
    write(model, path, name, _output_names(model))
    call = run_artifact.load(path)
    return lambda x: call("serve", x)


RUNTIMES = {
    "jax": ("predict",),
    "tensorflow": ("predict", "tf_saved_model", "onnx", "litert", "openvino"),
    "torch": ("predict", "torch.compile", "torch"),
}
QUICK = ("binary", "conv-kernel", "task-batch-norm")
# What a runtime cannot hold, and `export()` refuses: OpenVINO a matrix for each task in
# batches of any size, all three the bits that Keras looks at in `argmax()`.
LEFT_OUT = {
    "openvino": {"rotation", "argmax"},
    "onnx": {"argmax"},
    "litert": {"argmax"},
}


def main(arguments: list[str]) -> int:
    """Prints a line for each runtime; returns how many of them are wrong."""
    backend = keras.backend.backend()
    runtimes = [each for each in arguments if each != "--quick"] or RUNTIMES[backend]
    layers = QUICK if "--quick" in arguments else tuple(LAYERS)
    failures = 0
    for name in runtimes:
        left_out = LEFT_OUT.get(name, set())
        model = build([each for each in layers if each not in left_out], left_out)
        with tempfile.TemporaryDirectory() as folder:
            wrong = wrong_cells(runtime(model, name, folder))
        cells = len(model.outputs)
        print(f"{backend} {name}: {len(wrong)} of {cells} wrong {sorted(wrong)[:20]}")
        sys.stdout.flush()
        failures += bool(wrong)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
