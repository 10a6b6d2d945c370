"""Exports models to every format, and compares their answers with the model's.

All weights are drawn from one seed. `keras_psp.export` compares what it has written
with the model in a process that keeps Keras out. Interpreters that have the runtime and
NumPy alone do the same once more, if they are given:

    python -m venv clean && clean/bin/pip install tensorflow
    python tools/measure.py export --python tf_saved_model=clean/bin/python
"""

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_psp
from _measure import results
from _measure import tables
from _measure.results import SEED
from _measure.results import Row
from keras_psp import contexts
from keras_psp.exporting._check import BATCH_SIZES
from keras_psp.exporting._check import Check
from keras_psp.exporting._formats import FORMATS
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskLayerNormalization
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models import resnet18

NUM_TASKS = 5
WHAT = (
    "the largest difference between the answers of an exported model and the model's, "
    f"in batches of {BATCH_SIZES} with unknown tasks among them; of outputs larger "
    "than 1, relative to the largest"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    names = {"nargs": "+", "choices": MODELS, "metavar": "MODEL"}
    parser.add_argument("--models", **names, default=list(MODELS))
    parser.add_argument("--python", nargs="+", default=[], metavar="FORMAT=PATH")
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Exports from this backend and prints a table."""
    pythons = dict(pair.split("=", 1) for pair in args.python)
    rows = []
    for name in args.models:
        keras.utils.set_random_seed(SEED)
        model = MODELS[name]()
        _draw_weights(model)
        for format in args.formats:
            row = {"model": name, "format": format}
            rows.append(row | _export(model, format, pythons.get(format)))
            print(rows[-1], file=sys.stderr)
    needed = (FORMATS[format].packages.values() for format in args.formats)
    environment = results.describe_environment(*sorted(set().union(*needed)))
    name = f"export-{keras.backend.backend()}"
    result = results.save(args, name, WHAT, rows, environment, tasks=NUM_TASKS)
    tables.show(tables.draw_export, result)


def _export(model: TaskModel, format: str, python: str | None) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model" + FORMATS[format].suffix)
        has_endpoints = format == "tf_saved_model" and model.input["task"].ndim == 1
        tasks = [3] if has_endpoints else []
        try:
            card = keras_psp.export(model, path, format, tasks=tasks)
        except ValueError as error:
            return {"error": str(error).strip().splitlines()[-1]}
        if python is None:
            return {"difference": card["difference"]}
        infer = "infer_task" in card["endpoints"]
        check = Check(model, list(card["outputs"]), tasks, infer)
        difference = check.difference(check.run(path, folder, python))
        return {"difference": float(difference), "python": _list_packages(python)}


def _list_packages(python: str) -> list[str]:
    """Returns the names of what is installed for an interpreter."""
    code = (
        "import importlib.metadata as m; "
        "print(*sorted({d.metadata['Name'] for d in m.distributions()}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    names = done.stdout.split()
    if {"keras-psp", "keras_psp"} & set(names):
        raise ValueError(f"{python} has keras-psp")
    return names


def _draw_weights(model: keras.Model) -> None:
    """Gives a model weights of which none is like another, so that tasks differ."""
    rng = np.random.default_rng(SEED)
    for weight in model.weights:
        if weight.dtype == "float32" and weight.name != "contexts":
            zero = not np.any(keras.ops.convert_to_numpy(weight))
            if "var" in weight.name:
                weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
            elif len(weight.shape) == 1 or "bias" in weight.name or zero:
                weight.assign(weight + rng.normal(scale=0.1, size=weight.shape))


def _convolutional() -> keras.Model:
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", strides=2, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, name="head")(x), name="convolutional")


def _superposed() -> TaskModel:
    base = _convolutional()
    models = []
    for i in range(NUM_TASKS):
        models.append(keras.models.clone_model(base))
        rng = np.random.default_rng(i)
        models[-1].set_weights(
            [w + abs(rng.normal(scale=0.1, size=w.shape)) for w in base.get_weights()]
        )
    return keras_psp.superpose(models, base=base)


def _stack(*parts: layers.Layer, shape: tuple) -> TaskModel:
    """Returns a model of layers one after the other, and of means over all places."""
    image = x = keras.Input(shape, name="image")
    task = keras.Input((), dtype="int32", name="task")
    for part in parts:
        x = part(x, task)
    if len(x.shape) > 2:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = PSPDense(10, NUM_TASKS, name="logits")(x, task)
    return TaskModel({"image": image, "task": task}, x)


def _families(*names: str) -> TaskModel:
    drawn = (contexts.get(name, NUM_TASKS, seed=i) for i, name in enumerate(names))
    return _stack(*(PSPDense(8, context=context) for context in drawn), shape=(6,))


def _from_a_seed() -> TaskModel:
    binary = contexts.get("binary", NUM_TASKS, storage="seed")
    packed = contexts.get("binary", NUM_TASKS, storage="bits")
    return _stack(PSPDense(8, context=binary), PSPDense(8, context=packed), shape=(6,))


def _conv(**options: str) -> TaskModel:
    return _stack(
        PSPConv2D(4, 3, NUM_TASKS, padding="same", activation="relu", **options),
        PSPConv2D(4, 3, NUM_TASKS, strides=2, **options),
        shape=(8, 8, 3),
    )


def _attention() -> TaskModel:
    image = keras.Input((4, 6), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = TaskLayerNormalization(NUM_TASKS, name="norm")(image, task)
    x = PSPMultiHeadAttention(2, 3, NUM_TASKS, name="attention")(x, x, task=task)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    x = PSPDense(10, NUM_TASKS, name="logits")(x, task)
    return TaskModel({"image": image, "task": task}, x)


def _with_policy(policy: str) -> TaskModel:
    keras.config.set_dtype_policy(policy)
    try:
        return _mlp()
    finally:
        keras.config.set_dtype_policy("float32")


def _quantized() -> TaskModel:
    model = _mlp()
    model.quantize("int8")
    return model


_mlp = functools.partial(mlp, (8,), 10, NUM_TASKS, units=16, depth=2)
MODELS: dict[str, Callable[[], TaskModel]] = {
    "`models.mlp`": lambda: mlp((8, 8, 1), 10, NUM_TASKS, units=32, depth=2),
    "`models.resnet18`": lambda: resnet18((16, 16, 3), 10, NUM_TASKS, width=0.125),
    "`convert`": lambda: keras_psp.convert(_convolutional(), NUM_TASKS),
    "`superpose`": _superposed,
    "all families but `rotation`": lambda: _families(
        *(family for family in contexts.FAMILIES if family != "rotation")
    ),
    "`rotation`": lambda: _families("rotation"),
    "signs from a seed, in bits": _from_a_seed,
    "soft contexts": lambda: _mlp(soft=True),
    "complex numbers": lambda: _mlp(complex_valued=True),
    "convolution, kernel contexts": _conv,
    "convolution, channel contexts": lambda: _conv(context_over="channels"),
    "images of any size": lambda: _stack(
        PSPConv2D(4, 3, NUM_TASKS), shape=(None, None, 3)
    ),
    "`TaskBatchNormalization`": lambda: _stack(
        TaskBatchNormalization(NUM_TASKS, affine_per_task=True), shape=(8, 8, 3)
    ),
    "attention, `TaskLayerNormalization`": _attention,
    "`TaskDense`": lambda: _stack(
        TaskDense(8, NUM_TASKS, bias_initializer="normal"), shape=(6,)
    ),
    "mixed_bfloat16": lambda: _with_policy("mixed_bfloat16"),
    "int8": _quantized,
}
