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
model, and of `extract()` from the task it was trained on. `error` says what fails, and
where.
"""

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
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

NUM_TASKS = 3
TASKS = np.arange(hub_models.NUM_EXAMPLES, dtype="int32") % NUM_TASKS
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
    keep = "keep the result's other rows; without --only, measure those it lacks"
    parser.add_argument("--resume", action="store_true", help=keep)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Converts the models and prints a table."""
    rows: list[Row] = []
    environment = results.describe_environment("keras-hub")
    what = "a converted model beside the original, by model"
    backend = keras.backend.backend()
    written = args.output / f"{args.name or f'hub-{backend}'}.json"
    if args.resume and written.exists():
        rows = json.loads(written.read_text())["rows"]

    def save() -> results.Result:
        name = f"hub-{backend}"
        return results.save(args, name, what, rows, environment, tasks=NUM_TASKS)

    have = {row["model"] for row in rows}
    for name in args.only or [name for name in hub_models.MODELS if name not in have]:
        print(f"{name} ...", file=sys.stderr)
        keras.utils.set_random_seed(SEED)
        row = measure(name)
        rows[:] = [each for each in rows if each["model"] != name] + [row]
        print(f"  {row}", file=sys.stderr)
        keras.utils.clear_session()
        save()  # After each model: all of them take long.
    result = save()
    tables.show(tables.draw_hub, result)


def measure(name: str) -> Row:
    """Returns a model's row of the table."""
    row: Row = {"model": name}

    def attempt(step: str, measure: Callable[..., Any], *args: Any) -> Any:
        """Runs a step; a failure becomes the row's error, the first one counts."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return measure(*args)
        except Exception as error:
            row.setdefault("error", f"{step}: {_shorten(error)}")
            return None

    built = attempt("build", _build, name)
    if built is None:
        return row
    model, x, expected = built
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
    return row


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
    rng = np.random.default_rng(SEED)
    for weight in model.weights:  # Else much of it is 0 or 1, whichever task asks.
        if keras.backend.is_float_dtype(weight.dtype) and "seed" not in weight.path:
            draw = rng.uniform(-0.1, 0.1, size=weight.shape)
            low = 0.0 if "variance" in weight.path else -np.inf
            values = keras.ops.convert_to_numpy(weight) + draw
            weight.assign(np.maximum(values, low))
    x = hub_models.draw_inputs(model, name)
    expected = model.predict(x, verbose=0)
    if not all(np.isfinite(each).all() for each in keras.tree.flatten(expected)):
        raise ValueError("The original does not answer with finite numbers")
    return model, x, expected


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
    loss: Any = "mse"
    if not all(map(_has_batch, keras.tree.flatten(before))):  # Losses, for example.
        loss = {key: "mse" for key, each in before.items() if _has_batch(each)}
    # KerasHub's tasks bring metrics for labels.
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=[], weighted_metrics=[])
    model.fit(_with_task(model, x, 1), y, verbose=0, batch_size=len(TASKS))
    after = [_ask(model, x, k) for k in range(NUM_TASKS)]
    moved = [_differ(after[k], before) for k in range(NUM_TASKS)]
    mixed = keras.tree.map_structure(
        lambda *each: (
            np.stack([each[k][i] for i, k in enumerate(TASKS)])
            if _has_batch(each[0])
            else each[0]
        ),
        *after,
    )
    found = _ask(model, x, TASKS)
    for key in _OF_PAIRS & set(mixed if isinstance(mixed, dict) else ()):
        same = TASKS[:, np.newaxis] == TASKS
        mixed[key] = np.where(same, mixed[key], found[key])
    return moved[1], max(moved[0], moved[2]), _differ(found, mixed)


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
    return re.sub(r"\s+", " ", text)[:300]
