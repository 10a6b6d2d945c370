"""Converts every backbone of KerasHub, and compares it with what it was.

The models are small and have random weights. `each` and `mixed` are the largest
difference of any output between a converted model, `shared="copy"`, and the original:
for a batch of each task, and for a batch of all. `warn %` and `copy %` are how many of
the model's numbers are superposed or each task's own with `shared="warn"` and
`shared="copy"`. `moved` and `others` are how far a step of `fit` on task 1 moves what
the task answers, and what the others do; once with superposed kernels and once with
adapters (`context=None, rank=2`), which must leave the others alone. `mixed later` is
the largest difference of a batch of all tasks from the tasks alone, after that step.
`file` and `extract` are the largest difference of a `.keras` file from the trained
model, and of `extract()` from the task it was trained on. `superpose` is that of two
models with other weights, kept beside the original by `superpose(base=, rank=,
bits=32)`, which is exact, from their own answers: of each task, and of a batch of both.
`export` is that of a SavedModel from a converted model with other weights, by
`keras_psp.export()`'s own check. `error` says what fails, and where. Where `export`
fails, Keras exports the original: `plain export` says how that fails, if it does too.
"""

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_psp
from _measure import hub_models
from _measure import results
from _measure import tables
from _measure.results import SEED
from _measure.results import Row
from keras_psp._core.task_layer import find_task_layers
from keras_psp.exporting._check import run_python

NUM_TASKS = 3
TASKS = np.arange(hub_models.NUM_EXAMPLES, dtype="int32") % NUM_TASKS
RANK = 4096  # Of no layer here, so that the factors hold all of a kernel.
# What the largest difference may be, relative to the largest output if that is above 1.
EQUAL, ALONE, SHARE = 1e-5, 1e-6, 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    names: dict[str, Any] = {
        "nargs": "+",
        "metavar": "MODEL",
        "choices": list(hub_models.MODELS),
    }
    parser.add_argument("--only", **names, help="which models; all by default")
    parts = {"nargs": "+", "choices": list(_PARTS), "default": list(_PARTS)}
    parser.add_argument("--parts", **parts, help="what to measure; all by default")
    keep = "keep what the result has; without --only, measure the models it lacks"
    parser.add_argument("--resume", action="store_true", help=keep)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Converts the models and prints a table."""
    environment = results.describe_environment("keras-hub")
    what = "a converted model beside the original, by model"
    title = f"hub-{keras.backend.backend()}"
    earlier = results.read_earlier(args, title)
    rows: list[Row] = list(earlier["rows"]) if earlier else []

    def save() -> results.Result:
        more = {"earlier": earlier, "tasks": NUM_TASKS}
        return results.save(args, title, what, rows, environment, **more)

    have = {row["model"]: row for row in rows}
    for name in args.only or hub_models.MODELS:
        before = have.get(name, {})
        lacking = [part for part in args.parts if _PARTS[part][1] not in before]
        parts = args.parts if args.only else lacking
        if not parts:
            continue
        print(f"{name} ...", file=sys.stderr)
        keras.utils.set_random_seed(SEED)
        row = measure(name, parts, {} if "convert" in parts else before)
        rows[:] = [each for each in rows if each["model"] != name] + [row]
        print(f"  {row}", file=sys.stderr)
        keras.utils.clear_session()
        save()  # After each model: all of them take long.
    result = save()
    tables.show(tables.draw_hub, result)


def measure(name: str, parts: Sequence[str], before: Row) -> Row:
    """Returns a model's row of the table.

    Args:
        name: One of `hub_models.MODELS`.
        parts: Names of what to measure.
        before: What was measured of the model before, and stays.
    """
    row: Row = {**before, "model": name}
    if row.get("error", "").split(":")[0] in parts:
        del row["error"]

    def attempt(step: str, measure: Callable[..., Any], *args: Any) -> Any:
        """Runs a step; the first failure becomes the row's error."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return measure(*args)
        except Exception as error:
            found = f"{step}: {_shorten(error)}"
            if row.setdefault("error", found) != found:
                row.setdefault("more errors", []).append(found)
            return None

    built = attempt("build", _build, name)
    if built is None:
        return row
    for part in parts:
        _PARTS[part][0](row, attempt, *built)
    return row


def _measure_convert(row, attempt, model, x, expected):
    row["numbers"] = model.count_params()
    warn = attempt("convert, warn", _convert, model, "warn")
    if warn is not None:
        row["warn"] = own_share(warn, model)
    copy = attempt("convert, copy", _convert, model, "copy")
    if copy is not None:
        row["copy"] = own_share(copy, model)
        found = attempt("call, copy", _compare, copy, x, expected)
        if found is not None:
            row["each"], row["mixed"] = found
        moved = attempt("fit", _train, copy, x)
        if moved is not None:
            row["moved"], row["others"], row["mixed later"] = moved
        read = attempt("file", _save, copy, x)
        if read is not None:
            row["file"] = read
        plain = attempt("extract", _extract, copy, x)
        if plain is not None:
            row["extract"] = plain
    adapters = attempt("convert, adapters", _convert, model, "copy", None, 2)
    if adapters is not None:
        moved = attempt("fit, adapters", _train, adapters, x)
        if moved is not None:
            row["adapters moved"], row["adapters others"] = moved[:2]
            row["adapters mixed later"] = moved[2]


def _measure_superpose(row, attempt, model, x, expected):
    superposed = attempt("superpose", _superpose, row["model"], model, x)
    if superposed is not None:
        row["superpose"] = superposed


def _measure_export(row, attempt, model, x, expected):
    row.pop("plain export", None)
    exported = attempt("export", _export, model, x)
    if exported is not None:
        row["export"] = exported
        return
    try:
        _export_plain(model)
    except Exception as error:
        row["plain export"] = _shorten(error)


# Each with a column of the row that it fills.
_PARTS: dict[str, tuple[Callable[..., None], str]] = {
    "convert": (_measure_convert, "warn"),
    "superpose": (_measure_superpose, "superpose"),
    "export": (_measure_export, "export"),
}


def own_share(converted: Any, model: keras.Model) -> float:
    """Returns which share of a model's numbers tasks do not have in common.

    Constants, such as frequencies, are nobody's.
    """
    layers = find_task_layers(converted)
    own = {id(weight) for layer in layers for weight in layer.weights}
    constant = {weight.path for weight in model.non_trainable_weights}
    shared = [
        w for w in converted.weights if id(w) not in own and w.path not in constant
    ]
    return 1 - sum(_count(weight) for weight in shared) / model.count_params()


def _count(weight):
    return int(np.prod(weight.shape))


def _build(name):
    model = hub_models.MODELS[name]()
    _draw(model.weights, SEED)  # Else much is 0 or 1, whichever task asks.
    x = hub_models.draw_inputs(model, name)
    expected = model.predict(x, verbose=0)
    if not all(np.isfinite(each).all() for each in keras.tree.flatten(expected)):
        raise ValueError("The original does not answer with finite numbers")
    return model, x, expected


def _draw(weights, seed):
    """Adds small random numbers to weights."""
    rng = np.random.default_rng(seed)
    for weight in weights:
        if keras.backend.is_float_dtype(weight.dtype) and "seed" not in weight.path:
            draw = rng.uniform(-0.1, 0.1, size=weight.shape)
            low = 0.0 if "variance" in weight.path else -np.inf
            values = keras.ops.convert_to_numpy(weight) + draw
            weight.assign(np.maximum(values, low))


def _convert(model, shared, context="binary", rank=None):
    return keras_psp.convert(model, NUM_TASKS, context, shared=shared, rank=rank)


def _compare(model, x, expected):
    """The largest difference for batches of one task, and for a mixed one."""
    # Tasks 1 and 2 have started alike.
    each = max(_differ(_ask(model, x, k), expected) for k in (0, 1))
    return each, _differ(_ask(model, x, TASKS), expected)


def _train(model, x):
    """How far a step on task 1 moves it, and the others; and a mixed batch later."""
    rng = np.random.default_rng(SEED)
    before = _ask(model, x, 1)  # As the others, which have started alike.
    y = keras.tree.map_structure(
        lambda each: rng.normal(
            size=each.shape if _has_batch(each) else len(TASKS)
        ).astype("float32"),
        before,
    )
    if type(model).compute_loss is not keras.Model.compute_loss:
        y = x  # A loss of its own: an autoencoder's.
    loss: Any = "mse"
    if not all(map(_has_batch, keras.tree.flatten(before))):  # Losses, for example.
        loss = {key: "mse" for key, each in before.items() if _has_batch(each)}
    # KerasHub's tasks bring metrics for labels.
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=[], weighted_metrics=[])
    model.fit(_with_task(model, x, 1), y, verbose=0, batch_size=len(TASKS))
    after = [_ask(model, x, k) for k in range(NUM_TASKS)]
    moved = [_differ(after[k], before) for k in range(NUM_TASKS)]
    return moved[1], max(moved[0], moved[2]), _differ_mixed(model, x, TASKS, after)


def _differ_mixed(model, x, tasks, alone):
    """How far a batch of several tasks is from what each of them answers alone.

    Outputs without an entry for each example, if they are not the same for all tasks,
    are not compared: they tell of the whole batch.
    """
    found = _ask(model, x, tasks)

    def mix(given, *each):
        if len(tasks) not in np.shape(given):
            is_same = all(np.array_equal(each[0], other) for other in each)
            return each[0] if is_same else given
        axis = np.shape(given).index(len(tasks))
        rows = [each[k].take(i, axis) for i, k in enumerate(tasks)]
        return np.stack(rows, axis)

    mixed = keras.tree.map_structure(mix, found, *alone)
    for key in _OF_PAIRS & set(mixed if isinstance(mixed, dict) else ()):
        same = tasks[:, np.newaxis] == tasks
        mixed[key] = np.where(same, mixed[key], found[key])
    return _differ(found, mixed)


# How near each text of a batch is to each image: two tasks alone never meet there.
_OF_PAIRS = {"text_logits", "vision_logits"}


def _has_batch(output):
    return len(np.shape(output)) > 0 and len(output) == len(TASKS)


def _save(model, x):
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "one.keras")
        read = keras.models.load_model(Path(folder) / "one.keras")
    return _differ(_ask(read, x, TASKS), _ask(model, x, TASKS))


def _extract(model, x):
    plain = keras_psp.extract(model, 1)
    if find_task_layers(plain):
        raise ValueError("The model that was extracted takes a task")
    return _differ(plain.predict(x, verbose=0), _ask(model, x, 1))


def _superpose(name, base, x):
    """How far two models in one are from themselves, alone and in one batch."""
    models, tasks = [], TASKS % 2
    for seed in (1, 2):
        models.append(hub_models.MODELS[name]())
        models[-1].set_weights(base.get_weights())
        trained = models[-1].trainable_weights
        _draw(trained, seed)  # Constants are those of the base.
    expected = [model.predict(x, verbose=0) for model in models]
    if not _differ(*expected) > 1e-3:
        raise ValueError("The two models answer alike")
    one = keras_psp.superpose(models, base=base, rank=RANK, bits=32)
    each = max(_differ(_ask(one, x, k), expected[k]) for k in (0, 1))
    return max(each, _differ_mixed(one, x, tasks, expected))


def _export(model, x):
    copy = _convert(model, "copy")
    _draw(copy.trainable_weights, SEED)  # Else all tasks are alike.
    with tempfile.TemporaryDirectory() as folder:
        card = keras_psp.export(copy, Path(folder, "model"), infer_task=False, data=x)
    return card["difference"]


def _export_plain(model):
    """Exports a model by Keras' own means, in a process of TensorFlow's backend."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        code = (
            "import sys, keras, keras_hub; sys.path.insert(0, sys.argv[2]); "
            "from _measure import hub_models; folder = sys.argv[1]; "
            "model = keras.saving.load_model(folder + '/model.keras'); "
            "model.export(folder + '/model')"
        )
        tools = Path(__file__).parents[1]
        run_python(sys.executable, "-c", code, folder, tools, backend="tensorflow")


def _ask(model, x, task):
    return model.predict(_with_task(model, x, task), verbose=0)


def _with_task(model, x, task):
    task = np.broadcast_to(np.asarray(task, "int32"), len(TASKS))
    if isinstance(x, dict):
        return {**x, "task": task}
    if isinstance(model, keras_psp.models.TaskModel):
        (name,) = (name for name in model.input if name != "task")
        return {name: x, "task": task}
    return {"inputs": x, "task": task}


def _differ(given, expected):
    keras.tree.assert_same_structure(given, expected)
    pairs = zip(keras.tree.flatten(given), keras.tree.flatten(expected), strict=True)
    return max(_largest(*pair) for pair in pairs)


def _largest(given, expected):
    given, expected = (np.asarray(each, "float64") for each in (given, expected))
    if expected.shape[:1] == (1,):  # The same for all examples; not for all tasks.
        expected = np.broadcast_to(expected, given.shape[:1] + expected.shape[1:])
    if given.shape != expected.shape:
        raise ValueError(f"{given.shape} in place of {expected.shape}")
    if not given.size:
        return 0.0
    found = np.abs(given - expected).max() / max(1.0, np.abs(expected).max())
    return float("inf") if np.isnan(found) else float(found)


def _shorten(error):
    text = re.sub(r"\x1b\[\d*m", "", f"{type(error).__name__}: {error}")
    text = re.sub(r"\s+", " ", text)
    # The end of a process' traceback says what was wrong.
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
