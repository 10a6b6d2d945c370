"""Writes a format: `python -m keras_psp.exporting._write FOLDER`.

In a process of its own, for a model may come from a backend that cannot write it. The
folder holds `model.keras` and `order.json`, the arguments of `write()`.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import without_branches
from keras_psp.exporting._formats import FORMATS
from keras_psp.inference import decide
from keras_psp.inference import entropy


def write(model, path, format, tasks=(), infer_task=False, from_logits=True):
    """Writes a model in a format that the backend can write; see `export()`."""
    if format == "tf_saved_model":
        _write_saved_model(model, path, tasks, infer_task, from_logits)
    elif format == "torch":
        model.export(
            path, format=format, verbose=False, dynamic_shapes=_torch_shapes(model)
        )
    elif FORMATS[format].needs_one_graph:
        with without_branches():
            model.export(path, format=format, verbose=False)
    else:
        model.export(path, format=format, verbose=False)


def _write_saved_model(model, path, tasks, infer_task, from_logits):
    import tensorflow as tf

    specs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in model.input.items()
    }
    others = {name: spec for name, spec in specs.items() if name != "task"}
    # As declared comes first: that is what signatures are made of.
    serve = [specs]
    if "task" in specs and specs["task"].dtype == "int32":
        serve.append({**specs, "task": tf.TensorSpec(specs["task"].shape, "int64")})
    endpoints = {"serve": (_serve(model), *serve)}
    for task in tasks:
        endpoints[f"serve_task_{task}"] = _serve_task(model, task), others
    if infer_task:
        endpoints["infer_task"] = _infer_task(model, from_logits), others
    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, (function, *signatures) in endpoints.items():
        function = tf.function(function, autograph=False)
        for signature in signatures:  # Traced here, or Keras traces more often.
            function.get_concrete_function(signature)
        archive.add_endpoint(name, function)
    archive.write_out(path, verbose=False)


def _serve(model):
    def serve(inputs):
        if "task" in inputs and inputs["task"].dtype == "int64":
            # Keras would cast it, and 2**32 become task 0.
            limit = np.iinfo("int32")
            task = ops.clip(inputs["task"], limit.min, limit.max)
            inputs = {**inputs, "task": ops.cast(task, "int32")}
        return model(inputs, training=False)

    return serve


def _serve_task(model, task):
    return lambda inputs: model(_with_task(inputs, task), training=False)


def _infer_task(model, from_logits):
    """Returns `keras_psp.infer_task()` as a function of tensors."""

    def infer_task(inputs):
        def evidence(task):
            outputs = model(_with_task(inputs, task), training=False)
            return -entropy(ops.cast(outputs, "float32"), from_logits)

        evidence = ops.map(evidence, ops.arange(model.num_tasks, dtype="int32"))
        tasks, confidences = decide(ops.transpose(evidence))
        # What is not finite has no task.
        tasks = ops.where(ops.isfinite(confidences), tasks, -1)
        return {"task": tasks, "confidence": confidences}

    return infer_task


def _with_task(inputs, task):
    batch = ops.shape(next(iter(inputs.values())))[0]
    return {**inputs, "task": ops.full((batch,), task, dtype="int32")}


def _torch_shapes(model):
    import torch

    batch = torch.export.Dim("batch")
    shapes = {}
    for name, tensor in model.input.items():
        free = [i for i, size in enumerate(tensor.shape) if size is None and i > 0]
        shapes[name] = {0: batch, **{i: torch.export.Dim(f"{name}_{i}") for i in free}}
    return (shapes,)


def main(folder):
    """Writes what a folder orders."""
    order = json.loads((Path(folder) / "order.json").read_text())
    model = keras.saving.load_model(Path(folder) / "model.keras", compile=False)
    model(model.input)  # Keras exports to ONNX only what has been called.
    write(model, os.path.join(folder, order.pop("name")), **order)


if __name__ == "__main__":
    main(*sys.argv[1:])
