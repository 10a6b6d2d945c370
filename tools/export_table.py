"""What can be exported from where to which format, and how near its answers come.

    python tools/export_table.py --output export.json              # all that is missing
    python tools/export_table.py --output export.json --markdown   # the tables alone

Each backend has a process of its own, which exports models whose weights are drawn from
one seed. `keras_psp.export` compares what it has written with the model in a process
that keeps Keras out; here the same is done once more by interpreters that have the
runtime and NumPy alone, if they are given:

    python -m venv clean && clean/bin/pip install tensorflow
    python tools/export_table.py ... --python tf_saved_model=clean/bin/python

A measurement stays in the JSON; delete it there to have it made anew.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_psp
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

BACKENDS = ("jax", "tensorflow", "torch")
NUM_TASKS = 5
SEED = 0


def main():
    """Exports, each backend in a process of its own, and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--python", nargs="+", default=[], metavar="FORMAT=PATH")
    parser.add_argument("--markdown", action="store_true", help="export nothing")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        _export_all(args)
        return
    for backend in [] if args.markdown else args.backends:
        subprocess.run(
            [sys.executable, *sys.argv, "--part"],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
    print(_markdown(_read(args.output)))


def _export_all(args):
    backend = keras.backend.backend()
    pythons = dict(pair.split("=", 1) for pair in args.python)
    for name in args.models:
        missing = [
            format
            for format in args.formats
            if format not in _read(args.output)["cells"].get(name, {}).get(backend, {})
        ]
        if not missing:
            continue
        keras.utils.set_random_seed(SEED)
        model = _draw_weights(MODELS[name]())
        for format in missing:
            cell = _export(model, format, pythons.get(format))
            print(f"{name} from {backend} to {format}: {cell}", file=sys.stderr)
            content = _read(args.output)  # Other processes write it too.
            backends = content["cells"].setdefault(name, {})
            backends.setdefault(backend, {})[format] = cell
            content["versions"].update(_versions(format))
            args.output.write_text(json.dumps(content, indent=1))


def _export(model, format, python):
    """Returns a cell of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model" + FORMATS[format].suffix)
        has_endpoints = format == "tf_saved_model" and model.input["task"].ndim == 1
        tasks = [3] if has_endpoints else []
        try:
            card = keras_psp.export(model, path, format, tasks=tasks)
        except ValueError as error:
            return {"error": str(error).strip()}
        cell = {"difference": card["difference"], "python": None}
        if python is not None:
            infer = "infer_task" in card["endpoints"]
            check = Check(model, list(card["outputs"]), tasks, infer)
            cell["difference"] = float(
                check.difference(check.run(path, folder, python))
            )
            cell["python"] = _packages(python)
        return cell


def _packages(python):
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


def _versions(format):
    packages = ("keras-psp", "keras", "numpy", keras.backend.backend())
    packages += tuple(FORMATS[format].packages.values())
    return {name: importlib.metadata.version(name) for name in packages}


def _read(path):
    if path.exists():
        return json.loads(path.read_text())
    return {
        "what": "the largest difference between an exported model's answers and the "
        f"model's, batches of {BATCH_SIZES} and examples without a task among them; of "
        "outputs larger than 1, relative to the largest",
        "seed": SEED,
        "versions": {"python": platform.python_version()},
        "device": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "cells": {},
    }


def _draw_weights(model):
    """Gives a model weights of which none is like another, so that tasks differ."""
    rng = np.random.default_rng(SEED)
    for weight in model.weights:
        if weight.dtype == "float32" and weight.name != "contexts":
            if "var" in weight.name:
                weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
            elif len(weight.shape) == 1 or "bias" in weight.name or not _any(weight):
                weight.assign(weight + rng.normal(scale=0.1, size=weight.shape))
    return model


def _any(weight):
    return np.any(keras.ops.convert_to_numpy(weight))


def _convolutional():
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", strides=2, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(10, name="head")(x), name="convolutional")


def _superposed():
    base = _convolutional()
    models = []
    for i in range(NUM_TASKS):
        models.append(keras.models.clone_model(base))
        rng = np.random.default_rng(i)
        models[-1].set_weights(
            [w + abs(rng.normal(scale=0.1, size=w.shape)) for w in base.get_weights()]
        )
    return keras_psp.superpose(models, base=base)


def _stack(*parts, shape):
    """A model of layers one after the other, and means over all places."""
    image = x = keras.Input(shape, name="image")
    task = keras.Input((), dtype="int32", name="task")
    for part in parts:
        x = part(x, task)
    if len(x.shape) > 2:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = PSPDense(10, NUM_TASKS, name="logits")(x, task)
    return TaskModel({"image": image, "task": task}, x)


def _families(*names):
    return _stack(
        *(
            PSPDense(8, context=contexts.get(family, NUM_TASKS, seed=i))
            for i, family in enumerate(names)
        ),
        shape=(6,),
    )


def _from_a_seed():
    binary = contexts.get("binary", NUM_TASKS, storage="seed")
    packed = contexts.get("binary", NUM_TASKS, storage="bits")
    return _stack(PSPDense(8, context=binary), PSPDense(8, context=packed), shape=(6,))


def _conv(**options):
    return _stack(
        PSPConv2D(4, 3, NUM_TASKS, padding="same", activation="relu", **options),
        PSPConv2D(4, 3, NUM_TASKS, strides=2, **options),
        shape=(8, 8, 3),
    )


def _any_size():
    return _stack(PSPConv2D(4, 3, NUM_TASKS), shape=(None, None, 3))


def _attention():
    image = keras.Input((4, 6), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = TaskLayerNormalization(NUM_TASKS, name="norm")(image, task)
    x = PSPMultiHeadAttention(2, 3, NUM_TASKS, name="attention")(x, x, task=task)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    x = PSPDense(10, NUM_TASKS, name="logits")(x, task)
    return TaskModel({"image": image, "task": task}, x)


def _with_policy(policy):
    keras.config.set_dtype_policy(policy)
    try:
        return mlp((8,), 10, NUM_TASKS, units=16, depth=2)
    finally:
        keras.config.set_dtype_policy("float32")


def _quantized():
    model = mlp((8,), 10, NUM_TASKS, units=16, depth=2)
    model.quantize("int8")
    return model


BUILDERS = {
    "`models.mlp`": lambda: mlp((8, 8, 1), 10, NUM_TASKS, units=32, depth=2),
    "`models.resnet18`": lambda: resnet18((16, 16, 3), 10, NUM_TASKS, width=0.125),
    "`convert`": lambda: keras_psp.convert(_convolutional(), NUM_TASKS),
    "`superpose`": _superposed,
}
MODELS = BUILDERS | {
    "all families but `rotation`": lambda: _families(
        *(family for family in contexts.FAMILIES if family != "rotation")
    ),
    "`rotation`": lambda: _families("rotation"),
    "signs from a seed, in bits": _from_a_seed,
    "soft contexts": lambda: mlp((8,), 10, NUM_TASKS, units=16, depth=2, soft=True),
    "complex numbers": lambda: mlp(
        (8,), 10, NUM_TASKS, units=16, depth=2, complex_valued=True
    ),
    "convolution, kernel contexts": _conv,
    "convolution, channel contexts": lambda: _conv(context_over="channels"),
    "images of any size": _any_size,
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


def _markdown(content):
    """One row for each model and backend; and what was said where there is a "no"."""
    titles = ["", "from", *(f"`{format}`" for format in FORMATS)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    reasons = []
    for name in MODELS:
        shown = name
        for backend, cells in sorted(content["cells"].get(name, {}).items()):
            row = [_cell(cells.get(format)) for format in FORMATS]
            lines.append("| " + " | ".join([shown, backend, *row]) + " |")
            shown = ""
            for format, cell in cells.items():
                if "error" in cell:
                    said = cell["error"].splitlines()[-1]
                    reasons.append(f"{name} from {backend} to {format}: {said}")
    return "\n".join([*lines, "", *reasons])


def _cell(cell):
    if cell is None:
        return "—"
    return "no" if "error" in cell else f"{cell['difference']:.0e}"


if __name__ == "__main__":
    main()
