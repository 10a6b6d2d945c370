"""Writes a format: `python -m keras_psp.exporting._write FOLDER`.

It runs in a process of its own, because a model may come from a backend that cannot
write the format. The folder holds `model.keras`, `order.json`, the arguments of
`write()`, and the model's custom objects if it has any.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import without_branches
from keras_psp._core.private import children
from keras_psp._core.private import without_signatures
from keras_psp.exporting._custom import unpickle_objects
from keras_psp.exporting._formats import FORMATS
from keras_psp.inference import decide
from keras_psp.inference import entropy
from keras_psp.layers._few_bits import kept_packed


def write(
    model: keras.Model,
    path: str,
    format: str,
    output_names: list[str],
    tasks: Sequence[int] = (),
    infer_task: bool = False,
    from_logits: bool = True,
    unpack: bool = False,
) -> None:
    """Writes a model in a format that the backend can write; see `export()`.

    Args:
        model: Functional Keras model whose inputs are a dictionary.
        path: Path to write to.
        format: Name of a format.
        output_names: Names of the outputs in the file, in the order of
            `keras.tree.flatten()`.
        tasks: Tasks that have an endpoint each.
        infer_task: Boolean, whether there is an endpoint `infer_task`.
        from_logits: Boolean, an argument of `infer_task()`.
        unpack: Boolean, whether numbers in few bits become floats where a converter can
            compute them once.
    """
    if format == "tf_saved_model":
        _write_saved_model(model, path, output_names, tasks, infer_task, from_logits)
    elif format == "torch":
        if _is_nested(model):
            model = _with_outputs(model, output_names, named=True)
        model.export(
            path, format=format, verbose=False, dynamic_shapes=_torch_shapes(model)
        )
    elif format == "litert":
        # LiteRT keeps the names of a dictionary, and loses those of other structures.
        model = _with_outputs(model, output_names, named=True, unpack=unpack)
        with without_signatures():
            model.export(path, format=format, verbose=False)
    else:
        model = _with_outputs(model, output_names, unpack=unpack)
        rename = {"onnx": _rename_in_onnx, "openvino": _rename_in_openvino}[format]
        with tempfile.TemporaryDirectory() as folder:
            unnamed = os.path.join(folder, os.path.basename(path))
            branches = without_branches if FORMATS[format].needs_one_graph else _as_is
            with branches(), without_signatures():
                model.export(unnamed, format=format, verbose=False)
            rename(unnamed, path, output_names)


_as_is = contextlib.nullcontext


def _is_nested(model):
    output = model.output
    if not keras.tree.is_nested(output):
        return False
    parts = output.values() if isinstance(output, dict) else output
    return any(map(keras.tree.is_nested, parts))


def _with_outputs(model, names, named=False, unpack=True):
    """Returns the model with its outputs in a list, or in a dictionary by name.

    With `unpack`, nothing keeps a converter from unpacking numbers in few bits.
    """
    outputs = keras.tree.flatten(model(model.input))
    if named:
        outputs = dict(zip(names, outputs, strict=True))
    packed = "task" in model.input and not unpack
    model = (_KeptPacked if packed else keras.Model)(
        model.input, outputs, name=model.name
    )
    model(model.input)  # Keras exports to ONNX only what has been called.
    return model


class _KeptPacked(keras.Model):
    """Functional model whose numbers in few bits stay so in the file."""

    def call(self, inputs, training=None, mask=None):
        with kept_packed(inputs["task"]):
            return super().call(inputs, training=training, mask=mask)


def _rename_in_onnx(old, new, names):
    """Copies an ONNX file, and gives its outputs their names."""
    import onnx

    program = onnx.load(old)
    graph = program.graph
    for output, name in zip(graph.output, names, strict=True):
        node = onnx.helper.make_node("Identity", [output.name], [name])
        graph.node.append(node)
        output.name = name
    onnx.checker.check_model(program)
    onnx.save(program, new)


def _rename_in_openvino(old, new, names):
    """Copies an OpenVINO file, and gives its outputs their names.

    TensorFlow calls what a model returns `Identity`, `Identity_1` and so on. OpenVINO
    has these in an order of its own, and also returns what nothing in its graph reads:
    of attention, a size.
    """
    import openvino

    program = openvino.Core().read_model(old)
    known = {f"Identity_{i}:0": name for i, name in enumerate(names)}
    known["Identity:0"] = known.pop("Identity_0:0")
    for result in program.get_results():
        found = known.keys() & result.output(0).names
        if found:
            result.output(0).tensor.set_names({known[name] for name in found})
        else:
            program.remove_result(result)
    openvino.serialize(program, new)


def _write_saved_model(model, path, names, tasks, infer_task, from_logits):
    import tensorflow as tf

    specs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in model.input.items()
    }
    others = {name: spec for name, spec in specs.items() if name != "task"}
    dtype = model.input["task"].dtype if "task" in specs else None
    # The declared dtype comes first: TensorFlow makes the signatures of it.
    serve = [specs]
    if "task" in specs and specs["task"].dtype == "int32":
        serve.append({**specs, "task": tf.TensorSpec(specs["task"].shape, "int64")})
    model_of_file = model
    if _is_nested(model):  # Signatures hold no nested structures.
        model_of_file = _with_outputs(model, names, named=True)
    endpoints = {"serve": (_serve(model_of_file), *serve)}
    for task in tasks:
        endpoints[f"serve_task_{task}"] = (
            _serve_task(model_of_file, task, dtype),
            others,
        )
    if infer_task:
        endpoints["infer_task"] = _infer_task(model, dtype, from_logits), others
    archive = keras.export.ExportArchive()
    # Lookup tables must be tracked. Variables are found in the endpoints: Keras writes
    # those that are tracked as well twice (3.15.1).
    for layer in _without_variables(model_of_file):
        archive.track(layer)
    for name, (function, *signatures) in endpoints.items():
        function = tf.function(function, autograph=False)
        for signature in signatures:  # Traced here, or Keras traces more often.
            function.get_concrete_function(signature)
        archive.add_endpoint(name, function)
    archive.write_out(path, verbose=False)


def _without_variables(layer):
    """Yields the layers in a layer, in any depth, that hold no variables.

    A layer that nothing calls is not built, and Keras cannot track it.
    """
    for child in children(layer):
        if child.variables:
            yield from _without_variables(child)
        elif child.built:
            yield child


def _serve(model):
    # TensorFlow gives an input of the argument's name another one.
    def serve(keras_psp_inputs):
        inputs = dict(keras_psp_inputs)
        wide = "task" in inputs and inputs["task"].dtype == "int64"
        if wide and model.input["task"].dtype == "int32":
            # Keras would cast it, and 2**32 become task 0.
            limit = np.iinfo("int32")
            task = ops.clip(inputs["task"], limit.min, limit.max)
            inputs["task"] = ops.cast(task, "int32")
        return model(inputs, training=False)

    return serve


def _serve_task(model, task, dtype):
    def serve_task(keras_psp_inputs):
        return model(_with_task(keras_psp_inputs, task, dtype), training=False)

    return serve_task


def _infer_task(model, dtype, from_logits):
    """Returns `keras_psp.infer_task()` as a function of tensors."""

    def infer_task(keras_psp_inputs):
        def evidence(task):
            given = _with_task(keras_psp_inputs, task, dtype)
            outputs = model(given, training=False)
            return -entropy(ops.cast(outputs, "float32"), from_logits)

        present = ops.convert_to_tensor(model.present_tasks, dtype=dtype)
        evidence = ops.map(evidence, present)
        places, confidences = decide(ops.transpose(evidence))
        tasks = ops.cast(ops.take(present, places), "int32")
        # An example whose outputs are not finite has no task.
        tasks = ops.where(ops.isfinite(confidences), tasks, -1)
        return {"task": tasks, "confidence": confidences}

    return infer_task


def _with_task(inputs, task, dtype):
    batch = ops.shape(next(iter(inputs.values())))[0]
    return {**inputs, "task": ops.full((batch,), task, dtype=dtype)}


def _torch_shapes(model):
    import torch

    batch, any_size = torch.export.Dim("batch"), torch.export.Dim.DYNAMIC
    shapes = {}
    for name, tensor in model.input.items():
        free = [i for i, size in enumerate(tensor.shape) if size is None and i > 0]
        # Tokens and their mask have one length: torch finds that, and its limits.
        shapes[name] = {0: batch, **dict.fromkeys(free, any_size)}
    return (shapes,)


def main(folder: str) -> None:
    """Writes the model in a folder as its `order.json` says."""
    order = json.loads((Path(folder) / "order.json").read_text())
    with keras.saving.custom_object_scope(unpickle_objects(folder)):
        model = keras.saving.load_model(Path(folder) / "model.keras", compile=False)
        model(model.input)  # Keras exports to ONNX only what has been called.
        write(model, os.path.join(folder, order.pop("name")), **order)


if __name__ == "__main__":
    main(*sys.argv[1:])
