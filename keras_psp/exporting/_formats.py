"""The formats of exports, and what each needs."""

import dataclasses
import importlib.util


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        suffix: What a path must end with; `""` for a folder.
        backend: The backend of Keras that writes it.
        packages: What must be installed to write and to run the format: names of
            modules, and of the packages that hold them.
        needs_one_graph: Boolean, whether the format cannot hold branches. Layers use a
            branch to compute batches of one task more cheaply than mixed ones.
    """

    suffix: str
    backend: str
    packages: dict[str, str]
    needs_one_graph: bool = False


_TENSORFLOW = {"tensorflow": "tensorflow"}

FORMATS = {
    "tf_saved_model": Format("", "tensorflow", _TENSORFLOW),
    "onnx": Format(
        ".onnx",
        "tensorflow",
        {**_TENSORFLOW, "tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"},
        needs_one_graph=True,  # tf2onnx does not know a kernel's shape in a branch.
    ),
    "litert": Format(
        ".tflite", "tensorflow", {**_TENSORFLOW, "ai_edge_litert": "ai-edge-litert"}
    ),
    "openvino": Format(
        ".xml",
        "tensorflow",
        {**_TENSORFLOW, "openvino": "openvino"},
        # Its CPU plugin may answer the first batch from memory that it has not written.
        needs_one_graph=True,
    ),
    "torch": Format(".pt2", "torch", {"torch": "torch"}),
}


def check_installed(format: str, custom: bool = False) -> None:
    """Raises an `ImportError` that names the packages a format lacks.

    Args:
        format: Name of a format.
        custom: Boolean, whether the model has custom objects.
    """
    packages = dict(FORMATS[format].packages)
    if custom:
        packages["cloudpickle"] = "cloudpickle"
    missing = [name for module, name in packages.items() if not _is_installed(module)]
    if missing:
        raise ImportError(
            f"`format={format!r}` needs packages that are not installed. Install them "
            f"with: pip install {' '.join(missing)}"
        )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
