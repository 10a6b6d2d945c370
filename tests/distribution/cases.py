"""Models, and their training, that must be equal on one device and on several.

`python tools/measure.py devices` runs `CASES` on all engines of a backend; the tests
run some of them.
"""

import contextlib
import json
import sys

import keras
import numpy as np
from keras import layers
from keras.ops import convert_to_numpy as to_numpy

import keras_psp

TASKS = 8
CLASSES = 4
SIZES = {"resnet18": (16, 16, 3), "encoder": (4, 8)}  # Others have six numbers.
CASES = [
    (model, optimizer)
    for model in ("mlp", "resnet18", "encoder")
    for optimizer in ("ewc", "gram")
]


def build(name, storage="bytes"):
    """Builds a model of `TASKS` tasks."""
    family = "permutation" if name == "permuted" else "binary"

    def context():
        options = {} if name == "permuted" else {"storage": storage}
        return keras_psp.contexts.get(family, TASKS, name="context", **options)

    builders = {"resnet18": _resnet18, "encoder": _encoder}
    return builders.get(name, _mlp)(context)


def _mlp(context):
    x = keras.Input((6,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    new = keras_psp.layers
    parts = {"base": True, "rank": 2, "core": 3, "bias_per_task": True}
    y = new.PSPDense(16, context=context(), **parts, activation="relu")(x, task)
    y = new.TaskBatchNormalization(TASKS, synchronized=True)(y, task)
    y = new.PSPDense(16, context=context())(y, task)
    y = new.TaskDense(CLASSES, num_tasks=TASKS)(y, task)
    return keras_psp.models.TaskModel({"x": x, "task": task}, y)


def _resnet18(context):
    model = keras_psp.models.resnet18(
        SIZES["resnet18"], CLASSES, TASKS, context=context(), width=0.0625
    )
    for layer in model.layers:
        if isinstance(layer, keras_psp.layers.TaskBatchNormalization):
            layer.synchronized = True
    return model


def _encoder(context):
    x = keras.Input(SIZES["encoder"], name="x")
    attended = layers.MultiHeadAttention(2, 4)(x, x)
    y = layers.LayerNormalization()(x + attended)
    y = layers.LayerNormalization()(y + layers.Dense(8)(layers.Dense(16, "gelu")(y)))
    y = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(y))
    return keras_psp.convert(keras.Model(x, y), TASKS, context=context())


@contextlib.contextmanager
def precise(name):
    """In it, ResNet18 is of float64: where few numbers are normalized, errors grow."""
    if name != "resnet18":
        yield
        return
    _set_dtype("float64")
    try:
        yield
    finally:
        _set_dtype("float32")


def _set_dtype(dtype):
    if keras.backend.backend() == "jax":
        sys.modules["jax"].config.update("jax_enable_x64", dtype == "float64")
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def data(name, number=48, seed=0):
    """Returns inputs, of few tasks in a batch, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, *SIZES.get(name, (6,)))).astype(keras.config.floatx())
    together = 8 if name == "resnet18" else 4
    tasks = np.arange(number, dtype="int32") // together % TASKS
    first = "image" if name == "resnet18" else "x"
    return {first: x, "task": tasks}, rng.integers(0, CLASSES, number)


def optimizer(name):
    """Returns an optimizer, or one that consolidates."""
    sgd = keras.optimizers.SGD(0.01, momentum=0.5)
    if name == "per_task":
        return keras_psp.optimizers.PerTask(sgd)
    if name == "ewc":
        return keras_psp.consolidation.EWC(sgd, strength=20.0, labels="data")
    if name == "si":
        return keras_psp.consolidation.SynapticIntelligence(sgd, strength=5.0)
    if name == "gram":
        return keras_psp.consolidation.Gram(sgd, every=2, strength=1.0)
    return sgd


def compile_model(model, optimizer_name):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(optimizer_name), loss)


def train(model, name):
    """Trains a compiled model on two sets of data in turn, and returns the losses."""
    losses = []
    for seed in range(2):
        x, y = data(name, seed=seed)
        done = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        losses += done.history["loss"]
        end_task(model, x, y)
    return losses


def end_task(model, x, y, examples=10):
    """Ends a task whose data these are, if the optimizer consolidates."""
    if hasattr(model.optimizer, "end_task"):
        part = {key: value[:examples] for key, value in x.items()}
        model.optimizer.end_task(model, (part, y[:examples]))


def state(model):
    """Returns all numbers of a model, and those of its optimizer.

    Of Gram, matrices in place of their eigenvectors, which rounding may turn; and none
    for a weight without a gradient, as the bias of an attention's keys: there they are
    of rounding errors alone.
    """
    slots = {id(variable): to_numpy(variable) for variable in model.optimizer.variables}
    for i, pair in enumerate(getattr(model.optimizer, "factors", [])):
        if pair is None:
            continue
        for side, factor in enumerate(pair):
            del slots[id(factor.vectors)], slots[id(factor.values)]
            if pair[1].get().trace() > 1e-12:
                slots[i, side] = factor.get()
    return [to_numpy(variable) for variable in model.variables], [*slots.values()]


def compare(found, expected, unknown_alone):
    """Returns what the losses and states of two models of one architecture differ by.

    Args:
        found: `(losses, state)` of the model that several devices have trained.
        expected: The same of one device's.
        unknown_alone: What `is_unknown_alone()` returned of the first.
    """
    (losses, states), (other_losses, other_states) = found, expected
    apart = {"losses": _largest(losses, other_losses)}
    parts = ("weights", "optimizer_state")
    for part, values, others in zip(parts, states, other_states, strict=True):
        pairs = zip(values, others, strict=True)
        apart[part] = float(np.max([_largest(*pair) for pair in pairs]))
    return {**apart, "unknown_alone": unknown_alone, "dtype": keras.config.floatx()}


def _largest(found, expected):
    """Of numbers greater than 1, relative to the greatest."""
    found, expected = (np.asarray(each, "float64") for each in (found, expected))
    assert found.shape == expected.shape
    size = np.max(np.abs(expected), initial=1.0)
    return float(np.max(np.abs(found - expected), initial=0.0) / size)


def check(row, tolerance=1e-5):
    """Fails if a row of `compare()` shows a difference."""
    assert row["losses"] <= tolerance, row
    assert row["weights"] <= tolerance, row
    assert row["optimizer_state"] <= tolerance, row
    assert row["unknown_alone"] is True, row


def predict(model, x):
    return model.predict(x, batch_size=len(x["task"]), verbose=0)


def is_unknown_alone(model, name, predict=predict):
    """Returns whether of all examples those of unknown tasks alone are NaN."""
    x, _ = data(name, 16)
    x["task"][[1, 13]] = [-1, TASKS]
    unknown = np.isnan(predict(model, x))
    whole = unknown.all(axis=1).nonzero()[0].tolist()
    return whole == [1, 13] and int(unknown.any(axis=1).sum()) == 2


def write(row, engine, model, optimizer, file):
    """Writes a row behind those of a file, for `tools/measure.py devices`."""
    row = {"engine": engine, "model": model, "optimizer": optimizer, **row}
    with open(file, "a") as rows:
        print(json.dumps(row), file=rows)


def choose(names):
    """Returns the cases of names such as `"mlp-gram"`; without names all `CASES`."""
    return [tuple(name.split("-")) for name in names] or CASES


def run(engines, file, *names):
    """Writes a row for each case on each engine, a function of a case, into a file."""
    for name, optimizer in choose(names):
        for engine, train_on in engines.items():
            with precise(name):
                write(train_on(name, optimizer), engine, name, optimizer, file)
