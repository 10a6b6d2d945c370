"""`export`: a model for runtimes that know neither keras_psp nor Keras."""

import json
import os
import sys
import tempfile
from pathlib import Path

import keras

from keras_psp._core.checks import check_name
from keras_psp._core.task_index import check_task
from keras_psp._reading.graph import Graph
from keras_psp.exporting._card import describe
from keras_psp.exporting._check import BATCH_SIZES
from keras_psp.exporting._check import Check
from keras_psp.exporting._check import run_python
from keras_psp.exporting._formats import FORMATS
from keras_psp.exporting._formats import check_installed
from keras_psp.models.task_model import TaskModel

# How far an exported model's answers may be from the model's own.
TOLERANCES = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}


def export(
    model,
    path,
    format="tf_saved_model",
    tasks=(),
    infer_task=None,
    from_logits=True,
    overwrite=False,
    verbose=False,
):
    """Writes a model for a runtime that knows neither keras_psp nor Keras.

    The model goes through a `.keras` file into a new process of the backend that
    writes the format, so that the three backends write the same. Then one more process,
    without Keras, loads what has been written and answers batches of 1, 7 and 64
    examples of mixed tasks. Only if these are the model's own answers, and those of an
    example whose task there is not, and of no other, are NaN, does the file take its
    place at `path`.

    Inputs keep their names and dtypes, and the batch any size. A SavedModel has more
    than one endpoint:

    - `serve`, also `serving_default`: takes a task for each example; called as a
      function, `loaded.serve({"image": ..., "task": ...})`, also of 64 bits.
    - `serve_task_3`, for each of `tasks`: takes no task.
    - `infer_task`: takes no task, and gives `task` and `confidence` as
      `keras_psp.infer_task` does; task -1 for inputs that are not finite.

    Beside the model, in `path + ".json"`, or in a SavedModel's
    `assets.extra/keras_psp.json`, stands its card: tasks, contexts, inputs, versions,
    and how far its answers were from the model's.

    Args:
        model: Functional or sequential Keras model, with an input `"task"` or without.
        path: Path to write to, in a folder that exists. It ends with `.onnx`, `.tflite`
            (LiteRT), `.xml` (OpenVINO, with a `.bin` beside it) or `.pt2` (torch); a
            SavedModel is a folder.
        format: `"tf_saved_model"`, `"onnx"`, `"litert"`, `"openvino"` or `"torch"`.
        tasks: Integers, the tasks that have an endpoint of their own; in a SavedModel.
        infer_task: Boolean, whether there is an endpoint for that; in a SavedModel.
            Defaults to whether it can have one: the model has more than one task, and
            one output, of shape `(batch, num_classes)`.
        from_logits: Boolean, for `infer_task`: whether the model gives logits, or else
            probabilities.
        overwrite: Boolean, whether `path` may be there already.
        verbose: Boolean, whether to print what was written.

    Returns:
        The card, a dictionary.

    Raises:
        ImportError: What the format needs is not installed; with the command.
        OSError: `path` is there already, or cannot be written.
        TypeError: `model` is not a Keras model, a task not an integer.
        ValueError: The model is not a graph of layers, takes batches of one size alone,
            or holds custom objects, which another process cannot know; the format is
            unknown, or has no such endpoints; `path` does not end as it must; a task is
            none of the model's. Or the format cannot hold the model: it could not be
            written or loaded again, or answers otherwise. Nothing is left at `path`.

    Example:

    >>> import tempfile, keras_psp
    >>> model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=5, units=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     card = keras_psp.export(model, folder + "/model", tasks=[3])
    >>> card["endpoints"]
    ['serve', 'serve_task_3', 'infer_task']
    >>> card["difference"] < 1e-5
    True
    """
    check_name("format", format, FORMATS)
    path = _check_path(path, format, overwrite)
    model = _with_named_inputs(model)
    output_names = _output_names(model)
    options = _check_endpoints(model, format, tasks, infer_task, from_logits)
    _check_objects(model)
    check_installed(format)
    endpoints = ["serve", *(f"serve_task_{task}" for task in options["tasks"])]
    endpoints += ["infer_task"] if options["infer_task"] else []
    card = describe(model, format, output_names, endpoints)
    # Beside it, so that it can be renamed.
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", dir=path.parent
    ) as folder:
        check = Check(model, output_names, **options)
        written = Path(folder, "written", path.name)
        written.parent.mkdir()
        _write(model, written, folder, format, options)
        card["difference"] = _compare(model, check, written, folder, format)
        card["batch_sizes"] = list(BATCH_SIZES)
        _card_path(written, format).parent.mkdir(exist_ok=True)
        _card_path(written, format).write_text(json.dumps(card, indent=2))
        _move(written.parent, path)
    if verbose:
        keras.utils.io_utils.print_msg(f"Written: {path}: {', '.join(endpoints)}")
    return card


def _check_path(path, format, overwrite):
    path, suffix = Path(os.path.abspath(path)), FORMATS[format].suffix
    if not path.name.endswith(suffix):
        raise ValueError(
            f"With `format={format!r}`, `path` must end with {suffix!r}. "
            f"Received: path={str(path)!r}"
        )
    others = [known.suffix for known in FORMATS.values() if known.suffix]
    if not suffix and path.suffix in others:
        raise ValueError(
            f"`format={format!r}` writes a folder, whose name must not end with one of "
            f"{others}. Received: path={str(path)!r}"
        )
    for written in (path, _card_path(path, format), *_also_written(path, format)):
        if written.exists() and not overwrite:
            raise FileExistsError(
                "There is something at `path` already. Choose another, or pass "
                f"`overwrite=True`. Received: path={str(path)!r}, where {written} is"
            )
    is_model = path.is_file() if suffix else (path / "saved_model.pb").is_file()
    if path.exists() and not is_model:
        raise FileExistsError(
            f"What is at `path` is no model of `format={format!r}`, and is not "
            f"overwritten. Received: path={str(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `path` does not exist. Received: path={str(path)!r}"
        )
    return path


def _with_named_inputs(model):
    """Returns the model with a dictionary of inputs, and as a `TaskModel` if it is."""
    graph = Graph(model, takes_task=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in graph.inputs.items()}
    if any(not shape or shape[0] is not None for shape in shapes.values()):
        raise ValueError(
            "The model must take batches of any size. "
            f"Received: {model.name!r} with inputs of shape {shapes}"
        )
    kind = TaskModel if "task" in graph.inputs else keras.Model
    if isinstance(model, kind) and isinstance(model.input, dict):
        return model
    inputs = graph.new_inputs()
    outputs = graph.rebuild(inputs, lambda layer: layer)
    return kind(inputs, outputs, name=model.name)


def _output_names(model):
    """Returns the names by which the runtimes know the outputs, in order."""
    output = model.output
    if isinstance(output, dict) and not any(map(keras.tree.is_nested, output.values())):
        return sorted(output)
    outputs = keras.tree.flatten(output)
    if (
        isinstance(output, dict)
        or keras.tree.is_nested(output)
        and (any(map(keras.tree.is_nested, output)))
    ):
        raise ValueError(
            "The model must have one output, or a list or dictionary of them. "
            f"Received: {model.name!r} with outputs {output}"
        )
    return [f"output_{i}" for i in range(len(outputs))]


def _check_endpoints(model, format, tasks, infer_task, from_logits):
    if format != "tf_saved_model":
        if tasks or infer_task:
            raise ValueError(
                'Only `format="tf_saved_model"` has more than one endpoint. '
                f"Received: format={format!r}, tasks={tasks}, infer_task={infer_task}"
            )
        return {"tasks": [], "infer_task": False, "from_logits": from_logits}
    indexed = "task" in model.input and model.input["task"].dtype == "int32"
    tasks = list(dict.fromkeys(tasks))
    if tasks and not indexed:
        raise ValueError(
            "The model must have an input 'task' of dtype int32. "
            f"Received: {model.name!r} and tasks={tasks}"
        )
    tasks = [int(check_task(task, model.num_tasks)) for task in tasks]
    shape = getattr(model.output, "shape", ())
    can_infer = indexed and model.num_tasks > 1 and len(shape) == 2
    if infer_task and not can_infer:
        raise ValueError(
            "`infer_task=True` needs a model of more than one task, with one output of "
            f"shape (batch, num_classes). Received: {model.name!r} with {model.output}"
        )
    infer_task = can_infer if infer_task is None else bool(infer_task)
    return {"tasks": tasks, "infer_task": infer_task, "from_logits": from_logits}


def _check_objects(model):
    found = set(_custom_objects(keras.saving.serialize_keras_object(model)))
    if found:
        raise ValueError(
            "The model must hold no custom objects: the process that writes it knows "
            "none. `model.export()` needs no other process on the TensorFlow backend. "
            f"Received: {model.name!r} with {', '.join(sorted(found))}"
        )


def _custom_objects(config):
    """Yields the names of what is not Keras' or keras_psp's in a model's config."""
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _custom_objects(value)
    elif isinstance(config, dict):
        name = config.get("class_name")
        package = (config.get("module") or "").split(".")[0]
        if name == "function":
            yield f"the function {config['config']}"
        elif name == "__lambda__":
            yield "a lambda"
        elif isinstance(name, str) and not name.startswith("__"):
            known = package in ("keras", "keras_psp")
            if not known:
                yield config.get("registered_name") or name
        for value in config.values():
            yield from _custom_objects(value)


def _write(model, path, folder, format, options):
    model.save(Path(folder, "model.keras"))
    name = str(path.relative_to(folder))
    order = {"name": name, "format": format, **options}
    Path(folder, "order.json").write_text(json.dumps(order))
    try:
        run_python(
            sys.executable,
            *("-m", "keras_psp.exporting._write", folder),
            backend=FORMATS[format].backend,
        )
    except RuntimeError as error:
        raise ValueError(
            f"The model cannot be written with `format={format!r}`; another may hold "
            f"it. Received: {model.name!r}. Keras' export said:\n{error}"
        ) from error


def _compare(model, check, path, folder, format):
    try:
        found = check.run(path, folder)
    except RuntimeError as error:
        raise ValueError(
            f"What was written with `format={format!r}` does not run; another may hold "
            f"the model. Received: {model.name!r}. The runtime said:\n{error}"
        ) from error
    difference = float(check.difference(found))
    dtypes = [layer.compute_dtype for layer in model.layers]
    tolerance = max(TOLERANCES.get(dtype, 0) for dtype in dtypes)
    if not difference <= tolerance:
        raise ValueError(
            f"What was written with `format={format!r}` answers otherwise than the "
            f"model: it differs by {difference:.3g}, which is more than {tolerance}; "
            f"another may hold it. Received: {model.name!r}"
        )
    return difference


def _card_path(path, format):
    if not FORMATS[format].suffix:
        return path / "assets.extra" / "keras_psp.json"
    return path.with_name(path.name + ".json")


def _also_written(path, format):
    return [path.with_suffix(".bin")] if format == "openvino" else []


def _move(folder, path):
    """Moves what is in a folder to where it belongs, the model itself last."""
    with tempfile.TemporaryDirectory(prefix=".old.", dir=path.parent) as old:
        for new in sorted(folder.iterdir(), key=lambda new: new.name == path.name):
            target = path.with_name(new.name)
            if target.is_dir():  # A file is replaced without a moment between.
                os.replace(target, Path(old, new.name))
            os.replace(new, target)
