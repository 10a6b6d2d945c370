"""Compares what `convert` and `extract` give with what the models compute.

`largest` is the largest difference of any output: of a converted model from its Keras
model, for each task before any training; of its `.keras` file from it, after a step of
`fit`; and of `extract()` from a task of the model, for converted and superposed models
and for every builder with every family of contexts. All weights are random numbers.
`spread` is how far the outputs of several inputs lie apart, `inputs' last bit` how far
the Keras model's outputs move if its inputs move by their last bit.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_psp
from _measure import results
from _measure import tables
from _measure.results import SEED
from keras_psp.contexts import FAMILIES
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models import resnet18

NUM_TASKS, NUM_EXAMPLES, CLASSES = 3, 6, 10
Found = dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--only", default="", help="what to compare, by its beginning")
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Compares and prints a table."""
    keras.utils.set_random_seed(SEED)
    rows = []
    for name, compare in {**_conversions(), **_superpositions(), **_builders()}.items():
        if name.startswith(args.only):
            print(f"{name} ...", file=sys.stderr)
            found = compare()
            rows += [
                {"model": name, "what": what, "largest": largest}
                for what, largest in found.items()
            ]
            keras.utils.clear_session()
    what = "the largest difference of any output"
    name = f"exact-{keras.backend.backend()}"
    result = results.save(args, name, what, rows, tasks=NUM_TASKS)
    tables.show(tables.draw_exact, result)


def _conversions() -> dict[str, Callable[[], Found]]:
    options = {"input_shape": (32, 32, 3), "weights": None, "classes": CLASSES}
    options["classifier_activation"] = None
    models = {
        "MobileNetV2": functools.partial(keras.applications.MobileNetV2, **options),
        "ResNet50V2": functools.partial(keras.applications.ResNet50V2, **options),
        "Transformer encoder": _encoder,
    }
    return {
        f"convert, {name}": functools.partial(_compare_converted, build)
        for name, build in models.items()
    }


def _superpositions() -> dict[str, Callable[[], Found]]:
    def compare(family: str) -> Found:
        models = [_encoder() for _ in range(NUM_TASKS)]
        for k, model in enumerate(models):
            _draw_weights(model, k)
        return _compare_extracted(keras_psp.superpose(models, family, base=models[0]))

    return {f"superpose, {name}": functools.partial(compare, name) for name in FAMILIES}


def _builders() -> dict[str, Callable[[], Found]]:
    perceptron = functools.partial(mlp, (8, 8, 1), CLASSES, NUM_TASKS, 32, 2)
    resnet = functools.partial(resnet18, (16, 16, 3), CLASSES, NUM_TASKS, width=0.0625)
    families = [{"context": family} for family in FAMILIES]
    options = {
        perceptron: (
            *families,
            {"head": "multi"},
            {"head": "shared"},
            {"soft": True},
            {"context": "complex", "complex_valued": True},
        ),
        resnet: (
            *families,
            {"context_over": "channels"},
            {"norm": "shared"},
            {"norm": "group", "head": "multi"},
            {"norm": "task", "head": "multi", "context": None},
            {"norm": "task", "head": "shared", "stem": "imagenet"},
        ),
    }

    def compare(build: Callable[..., TaskModel], given: dict) -> Found:
        model = build(**given)
        _draw_weights(model)
        return _compare_extracted(model)

    return {
        f"extract, {build.func.__name__}, {given}": functools.partial(
            compare, build, given
        )
        for build in options
        for given in options[build]
    }


def _encoder() -> keras.Model:
    x = inputs = keras.Input((16, 32), name="tokens")
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 8)(y, y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(64, activation="gelu")(y)
        x = x + layers.Dense(32)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def _compare_converted(build: Callable[[], keras.Model]) -> Found:
    model = build()
    _draw_weights(model)
    x = _draw_inputs(model)
    _normalize(model)
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, NUM_TASKS)
    name = next(name for name in one.input if name != "task")
    tasks = [np.full(NUM_EXAMPLES, task, "int32") for task in range(NUM_TASKS)]
    mixed = np.arange(NUM_EXAMPLES, dtype="int32") % NUM_TASKS

    def answer(model: keras.Model, task: np.ndarray) -> np.ndarray:
        return model.predict({name: x, "task": task}, verbose=0)

    found = {"spread": _spread(expected)}
    moved = np.nextafter(x, np.float32(np.inf))  # What rounding alone amounts to.
    found["inputs' last bit"] = _largest(model.predict(moved, verbose=0) - expected)
    each = [_largest(answer(one, task) - expected) for task in tasks]
    found["each task"] = max(each)
    found["mixed"] = _largest(answer(one, mixed) - expected)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one.compile(keras.optimizers.SGD(0.01, global_clipnorm=1.0), loss)
    before = [np.array(weight) for weight in one.get_weights()]
    one.fit({name: x, "task": mixed}, np.arange(NUM_EXAMPLES) % CLASSES, verbose=0)
    pairs = zip(before, one.get_weights(), strict=True)
    changed = sum(not np.array_equal(*pair) for pair in pairs)
    found["weights changed by a fit step"] = changed
    with tempfile.TemporaryDirectory() as folder:
        one.save(Path(folder) / "one.keras")
        again = keras.models.load_model(Path(folder) / "one.keras")
    learned = answer(one, mixed)
    found["learned"] = _largest(learned - expected)
    found["file"] = _largest(answer(again, mixed) - learned)
    found["extract"] = max(
        _largest(keras_psp.extract(one, k).predict(x, verbose=0) - answer(one, task))
        for k, task in enumerate(tasks)
    )
    return found


def _compare_extracted(model: TaskModel) -> Found:
    name = next(name for name in model.input if name != "task")
    x = _draw_inputs(model)
    soft = keras.backend.is_float_dtype(model.input["task"].dtype)
    spreads, differences = [], []
    for k in range(NUM_TASKS):
        task = np.full(NUM_EXAMPLES, k, "int32")
        if soft:
            task = np.eye(NUM_TASKS, dtype="float32")[task]
        expected = model.predict({name: x, "task": task}, verbose=0)
        plain = keras_psp.extract(model, k)
        answers = keras.ops.convert_to_numpy(plain(x))  # Not to compile each of them.
        differences.append(_largest(answers - expected))
        spreads.append(_spread(expected))
    return {"spread": min(spreads), "extract": max(differences)}


def _draw_weights(model: keras.Model, seed: int = SEED) -> None:
    """Gives what begins alike, for all tasks and channels, values of its own."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "bias", "moving_mean", "moving_variance"):
            values = keras.ops.convert_to_numpy(weight)
            weight.assign(values + rng.uniform(-0.1, 0.1, size=values.shape))


def _normalize(model: keras.Model) -> None:
    """Gives normalizations the statistics of inputs: else the outputs fade away."""
    norms = [
        layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(_draw_inputs(model, number=128, seed=SEED + 1), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _draw_inputs(
    model: keras.Model, number: int = NUM_EXAMPLES, seed: int = SEED
) -> np.ndarray:
    (shape,) = (each.shape[1:] for each in model.inputs if each.name != "task")
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, *shape)).astype("float32")


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def _spread(outputs: np.ndarray) -> float:
    return _largest(outputs - outputs.mean(axis=0))
