"""Runs an exported model: `python -P _run_artifact.py MODEL REQUESTS ANSWERS`.

It needs NumPy and the format's runtime; Keras and keras_psp are kept out. `REQUESTS`
and `ANSWERS` are `.npz` files of arrays named `number/endpoint/tensor`.
"""

import sys
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]


def main(model: str, requests: str, answers: str) -> None:
    """Answers all requests of a file.

    Args:
        model: Path of the exported model; its suffix tells the format.
        requests: Path of the `.npz` file of inputs.
        answers: Path of the `.npz` file to write the outputs to.
    """
    calls: dict[tuple[str, str], Arrays] = {}
    with np.load(requests) as arrays:
        for key, value in arrays.items():
            number, endpoint, name = key.split("/", 2)
            calls.setdefault((number, endpoint), {})[name] = value
    call = load(model)
    found = {}
    for (number, endpoint), inputs in calls.items():
        for name, value in call(endpoint, inputs).items():
            found[f"{number}/{endpoint}/{name}"] = as_known(value)
    np.savez(answers, **found)  # type: ignore[arg-type]


def as_known(value: np.ndarray) -> np.ndarray:
    """Returns an array as float32 if `.npz` files cannot hold its dtype, bfloat16."""
    return value.astype("float32") if value.dtype.kind == "V" else value


def load(model: str) -> Callable[[str, Arrays], Arrays]:
    """Returns a function of an endpoint's name and of a dictionary of arrays."""
    suffix = next(suffix for suffix in _LOADERS if model.endswith(suffix))
    return _LOADERS[suffix](model)


def _load_saved_model(model):
    import tensorflow as tf

    signatures = tf.saved_model.load(model).signatures

    def call(endpoint, inputs):
        inputs = {name: tf.constant(value) for name, value in inputs.items()}
        outputs = signatures[endpoint](**inputs)
        return {name: value.numpy() for name, value in outputs.items()}

    return call


def _load_onnx(model):
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def call(endpoint, inputs):
        return dict(zip(names, session.run(names, inputs), strict=True))

    return call


def _load_litert(model):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=model).get_signature_runner()
    return lambda endpoint, inputs: runner(**inputs)


def _load_openvino(model):
    import openvino

    # Some processors would compute with fewer bits unless told not to.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    program = openvino.Core().read_model(model)
    # Compiled, two outputs that are one tensor have one name.
    names = [output.any_name for output in program.outputs]
    compiled = openvino.Core().compile_model(program, "CPU", exact)

    def call(endpoint, inputs):
        return dict(zip(names, compiled(inputs).to_tuple(), strict=True))

    return call


def _load_torch(model):
    import torch

    module = torch.export.load(model).module()

    def call(endpoint, inputs):
        inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad():
            outputs = module(inputs)
        if isinstance(outputs, dict):
            return {name: to_numpy(value) for name, value in outputs.items()}
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return {f"output_{i}": to_numpy(each) for i, each in enumerate(outputs)}

    def to_numpy(tensor):
        # NumPy has no bfloat16.
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return call


_LOADERS = {
    ".onnx": _load_onnx,
    ".tflite": _load_litert,
    ".xml": _load_openvino,
    ".pt2": _load_torch,
    "": _load_saved_model,
}

if __name__ == "__main__":
    for name in ("keras", "keras_psp"):
        sys.modules[name] = None  # type: ignore[assignment]  # `import` then fails.
    main(*sys.argv[1:])
