"""`export`: a model for runtimes that know neither keras_psp nor Keras."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_psp._core.checks import check_boolean
from keras_psp._core.checks import check_name
from keras_psp._core.data import read_inputs
from keras_psp._reading.graph import Graph
from keras_psp.exporting._card import describe
from keras_psp.exporting._check import BATCH_SIZES
from keras_psp.exporting._check import Check
from keras_psp.exporting._check import run_python
from keras_psp.exporting._check import takes_index
from keras_psp.exporting._custom import custom_objects
from keras_psp.exporting._custom import pickle_objects
from keras_psp.exporting._formats import FORMATS
from keras_psp.exporting._formats import check_installed
from keras_psp.models._own_model import OwnModel
from keras_psp.models.task_model import TaskModel

# How far an exported model's answers may be from the model's own.
TOLERANCES = {"float32": 1e-5, "float64": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}


def export(
    model: keras.Model,
    path: str | os.PathLike,
    format: str = "tf_saved_model",
    tasks: Iterable[int | str] = (),
    infer_task: bool | None = None,
    from_logits: bool = True,
    unpack: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
    data: Any = None,
) -> dict[str, Any]:
    """Writes a model for a runtime that knows neither keras_psp nor Keras.

    The model goes through a `.keras` file into a new process of the backend that
    writes the format, so that the three backends write the same. A second new process,
    without Keras, loads the file and answers batches of 1, 7 and 64 examples of mixed
    tasks. `export()` keeps the file only if its outputs match the model's and invalid
    tasks give NaN. If anything fails, whatever was at `path` before stays there.

    Layers and functions of your own are pickled into the first process. They must
    compute with `keras.ops`, for its backend may be another one. Register functions
    with `keras.saving.register_keras_serializable()`.

    Inputs keep their names and dtypes, and batches may have any size. Outputs have the
    names on the card: the keys of the model's dictionary, or else `output_0`,
    `output_1`, ... In a nested structure the keys and positions on the way to an output
    are joined by `_`: the outputs of `{"a": [x, y]}` are `a_0` and `a_1`. An exported
    torch program returns what the model does, a tensor, a list or a dictionary; of a
    nested structure it returns a dictionary of these names.

    For an invalid task integer outputs give the lowest number of their dtype, or the
    highest if the dtype is unsigned, and booleans false. A SavedModel has more than one
    endpoint:

    - `serve`, also `serving_default`: takes a task for each example; called as a
      function, `loaded.serve({"image": ..., "task": ...})`, also of 64 bits.
    - `serve_task_3`, for each of `tasks`: takes no task.
    - `infer_task`: takes no task, and gives `task` and `confidence` as
      `keras_psp.infer_task` does; task -1 for inputs that are not finite.

    The card describes the file: tasks, contexts, inputs, outputs, versions, and how far
    the file's outputs were from the model's, in all (`difference`) and for each output
    (`differences`). It is written to `path + ".json"`, or into a SavedModel as
    `assets.extra/keras_psp.json`.

    Args:
        model: Functional or sequential Keras model, with an input `"task"` or without.
        path: Path to write to, in a folder that exists. It ends with `.onnx`, `.tflite`
            (LiteRT), `.xml` (OpenVINO, with a `.bin` beside it) or `.pt2` (torch); a
            SavedModel is a folder.
        format: `"tf_saved_model"`, `"onnx"`, `"litert"`, `"openvino"` or `"torch"`.
        tasks: Integers or names, the tasks that have an endpoint of their own; in a
            SavedModel.
        infer_task: Boolean, whether there is an endpoint for that; in a SavedModel.
            Defaults to whether it can have one: the model has more than one task, and
            one output, of shape `(batch, num_classes)`.
        from_logits: Boolean, for `infer_task`: whether the model gives logits, or else
            probabilities.
        unpack: Boolean, whether numbers that layers store in few bits become floats in
            an `"onnx"`, `"litert"` or `"openvino"` file. The file is larger then, and
            its answers take far less time. Other formats keep them packed.
        overwrite: Boolean, whether `path` may be there already.
        verbose: Boolean, whether to print what was written.
        data: Unlabelled inputs to compare the file's outputs with the model's for: an
            array, a list or dictionary of arrays if the model has several inputs, or
            batches of these. Up to 64 examples are used. Defaults to random numbers:
            inputs of any length get 32 of them, and integers are 0 or 1.

    Returns:
        The card, a dictionary.

    Raises:
        ImportError: What the format needs is not installed; with the command.
        OSError: `path` exists already, or cannot be written.
        TypeError: `model` is not a Keras model, `path` is not a path, a task is not an
            integer, an option is not a boolean, or `data` holds no arrays.
        ValueError: The model is not a graph of layers, takes only batches of one size,
            has two outputs of one name or one without an entry for each example, or
            holds a lambda or another custom object that cannot be given to another
            process; the format is unknown, or has no such endpoints; `path` has the
            wrong suffix; a task is not one of the model's; `data` has no example, is
            not finite, or does not fit the model's inputs; or there is no `data`, and
            random numbers do not fit. Or the format cannot hold the model: the file
            could not be written or loaded again, or its outputs differ.

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
    for name, value in (
        ("from_logits", from_logits),
        ("unpack", unpack),
        ("overwrite", overwrite),
        ("verbose", verbose),
    ):
        check_boolean(name, value)
    path = _check_path(path, format, overwrite)
    model = _with_named_inputs(model)
    output_names = _output_names(model)
    options = _check_endpoints(model, format, tasks, infer_task, from_logits)
    objects = custom_objects(model)
    if data is not None:
        inputs = {name: x for name, x in model.input.items() if name != "task"}
        data = read_inputs(data, inputs, limit=max(BATCH_SIZES))
    check_installed(format, custom=bool(objects))
    endpoints = ["serve", *(f"serve_task_{task}" for task in options["tasks"])]
    endpoints += ["infer_task"] if options["infer_task"] else []
    card = describe(model, format, output_names, endpoints)
    # Beside it, so that it can be renamed.
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.", dir=path.parent
    ) as folder:
        check = Check(model, output_names, data=data, **options)
        written = Path(folder, "written", path.name)
        written.parent.mkdir()
        pickle_objects(model, objects, folder)
        _write(model, written, folder, format, {**options, "unpack": unpack})
        card["differences"] = _compare(model, check, written, folder, format)
        card["difference"] = max(card["differences"].values())
        card["batch_sizes"] = list(BATCH_SIZES)
        _card_path(written, format).parent.mkdir(exist_ok=True)
        _card_path(written, format).write_text(json.dumps(card, indent=2))
        _move(written.parent, path)
    if verbose:
        keras.utils.io_utils.print_msg(f"Written: {path}: {', '.join(endpoints)}")
    return card


def _check_path(path: Any, format: str, overwrite: bool) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise TypeError(
            "`path` must be a path that is not empty. "
            f"Received: path={path!r} (of type {type(path).__name__})"
        )
    path, suffix = Path(os.path.abspath(path)), FORMATS[format].suffix
    if not path.name.endswith(suffix):
        raise ValueError(
            f"With `format={format!r}`, `path` must end with {suffix!r}. "
            f"Received: path={str(path)!r}"
        )
    others = [known.suffix for known in FORMATS.values() if known.suffix]
    if not suffix and path.suffix in others:
        raise ValueError(
            f"`format={format!r}` writes a folder: its name must not end with one of "
            f"{others}. Received: path={str(path)!r}"
        )
    for written in (path, _card_path(path, format), *_also_written(path, format)):
        if written.exists() and not overwrite:
            raise FileExistsError(
                f"{str(written)!r} exists already. Choose another `path`, or pass "
                f"`overwrite=True`. Received: path={str(path)!r}"
            )
    is_model = path.is_file() if suffix else (path / "saved_model.pb").is_file()
    if path.exists() and not is_model:
        raise FileExistsError(
            f"What exists at `path` is no model of `format={format!r}`, and `export()` "
            f"does not overwrite it. Received: path={str(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder of `path` does not exist. Received: path={str(path)!r}"
        )
    return path


def _with_named_inputs(model: keras.Model) -> keras.Model:
    """Returns the model with a dictionary of inputs, and as a `TaskModel` if it is."""
    if isinstance(model, OwnModel):
        model = model.as_task_model()
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
    named: Any = kind(inputs, outputs, name=model.name)
    if getattr(model, "task_names", None) is not None:
        named.task_names = model.task_names
    if getattr(model, "class_names", None) is not None:
        named.class_names = model.class_names
    return named


def _output_names(model: keras.Model) -> list[str]:
    """Returns the names by which the runtimes know the outputs, in order."""
    paths = [path for path, _ in keras.tree.flatten_with_path(model.output)]
    if not isinstance(model.output, dict):
        paths = [("output", *(path or (0,))) for path in paths]
    names = ["_".join(map(str, path)) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(
            "The outputs of the model must have names that differ. "
            f"Received: {model.name!r} with outputs {names}"
        )
    return names


def _check_endpoints(
    model: keras.Model,
    format: str,
    tasks: Any,
    infer_task: bool | None,
    from_logits: bool,
) -> dict[str, Any]:
    if infer_task is not None:
        check_boolean("infer_task", infer_task)
    if isinstance(tasks, (str, bytes, dict)) or not isinstance(tasks, Iterable):
        raise TypeError(
            "`tasks` must be a list of integers or names. "
            f"Received: tasks={tasks!r} (of type {type(tasks).__name__})"
        )
    tasks = list(tasks)
    if format != "tf_saved_model":
        if tasks or infer_task:
            raise ValueError(
                'Only `format="tf_saved_model"` has more than one endpoint. '
                f"Received: format={format!r}, tasks={tasks}, infer_task={infer_task}"
            )
        return {"tasks": [], "infer_task": False, "from_logits": from_logits}
    indexed = takes_index(model)
    if tasks and not indexed:
        raise ValueError(
            "The model must have an input 'task' of an integer dtype. "
            f"Received: {model.name!r} and tasks={tasks}"
        )
    # A model that takes no task knows no indices.
    tasks = list(dict.fromkeys(model.task_index(task) for task in tasks))
    shape = getattr(model.output, "shape", ())
    can_infer = indexed and len(model.present_tasks) > 1 and len(shape) == 2
    if infer_task and not can_infer:
        raise ValueError(
            "`infer_task=True` needs a model of more than one task, with one output of "
            f"shape (batch, num_classes). Received: {model.name!r} with {model.output}"
        )
    infer_task = can_infer if infer_task is None else infer_task
    return {"tasks": tasks, "infer_task": infer_task, "from_logits": from_logits}


def _write(
    model: keras.Model, path: Path, folder: str, format: str, options: dict[str, Any]
) -> None:
    model.save(Path(folder, "model.keras"))
    name = str(path.relative_to(folder))
    names = _output_names(model)
    order = {"name": name, "format": format, "output_names": names, **options}
    Path(folder, "order.json").write_text(json.dumps(order))
    try:
        run_python(
            sys.executable,
            *("-m", "keras_psp.exporting._write", folder),
            backend=FORMATS[format].backend,
        )
    except RuntimeError as error:
        raise ValueError(
            f"The model cannot be written with `format={format!r}`; try another "
            f"format. Received: {model.name!r}. Keras' export said:\n{error}"
        ) from error


def _compare(
    model: keras.Model, check: Check, path: Path, folder: str, format: str
) -> dict[str, float]:
    """Returns how far each output of the file is from the model's."""
    try:
        found = check.run(path, folder)
    except RuntimeError as error:
        raise ValueError(
            f"What was written with `format={format!r}` does not run; try another "
            f"format. Received: {model.name!r}. The runtime said:\n{error}"
        ) from error
    dtypes = [layer.compute_dtype for layer in model.layers]
    tolerance = max(TOLERANCES.get(dtype, 0) for dtype in dtypes)
    difference = check.difference(found)
    if not difference <= tolerance:
        raise ValueError(
            f"What was written with `format={format!r}` does not match the model: it "
            f"differs by {difference:.3g}, which is more than {tolerance}; try another "
            f"format. Received: {model.name!r}"
        )
    return check.differences(found)


def _card_path(path: Path, format: str) -> Path:
    if not FORMATS[format].suffix:
        return path / "assets.extra" / "keras_psp.json"
    return path.with_name(path.name + ".json")


def _also_written(path: Path, format: str) -> list[Path]:
    return [path.with_suffix(".bin")] if format == "openvino" else []


def _move(folder: Path, path: Path) -> None:
    """Moves what is in a folder to where it belongs, the model itself last.

    If that fails half way, what was there before is put back.
    """
    with tempfile.TemporaryDirectory(prefix=".old.", dir=path.parent) as old:
        moved = []
        try:
            for new in sorted(folder.iterdir(), key=lambda new: new.name == path.name):
                target, kept = path.with_name(new.name), Path(old, new.name)
                if target.is_dir():
                    os.replace(target, kept)
                elif target.exists():
                    # A copy, so that the file is replaced without a moment between.
                    shutil.copy2(target, kept)
                moved.append((target, kept))
                os.replace(new, target)
        except BaseException:
            for target, kept in moved:
                if kept.exists():
                    os.replace(kept, target)
                else:
                    target.unlink(missing_ok=True)
            raise
