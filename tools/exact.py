"""How exactly `convert` and `extract` keep what a model computes.

    python tools/exact.py --output exact.json

The largest difference of any output, on each backend: of a converted model from the
Keras model that it was made of, for each task before any training; of its `.keras` file
from it, after a step of `fit`; and of `extract()` from a task of the model: converted
and superposed ones, and every builder's, of every family of contexts. All weights are
random numbers; `spread` is how far outputs for several inputs lie apart, `inputs' last
bit` how far the Keras model's move if the inputs do by their last bit.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
NUM_TASKS, NUM_EXAMPLES, CLASSES, SEED = 3, 6, 10, 0


def main():
    """Compares on each backend and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--only", help="what to compare, by its name's beginning")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_measure(args.only or "")))
        return
    content = {}
    for backend in args.backends:
        print(f"on {backend} ...", file=sys.stderr)
        done = subprocess.run(
            [sys.executable, *sys.argv, "--part"],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            check=True,
        )
        content[backend] = json.loads(done.stdout.splitlines()[-1])
        args.output.write_text(json.dumps(content, indent=1))
    print(_markdown(content))


def _measure(beginning):
    import keras

    keras.utils.set_random_seed(SEED)
    differences = {}
    for name, compare in {**_conversions(), **_superpositions(), **_builders()}.items():
        if name.startswith(beginning):
            print(f"{name} ...", file=sys.stderr)
            differences[name] = compare()
            keras.utils.clear_session()
    packages = ("keras-psp", "keras", "numpy", keras.backend.backend())
    return {
        "seed": SEED,
        "tasks": NUM_TASKS,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "device": {
            "platform": platform.platform(),
            "name": str(keras.Variable(0.0).value.device),
            "cpus": os.cpu_count(),
        },
        "differences": differences,
    }


def _conversions():
    """Returns functions that compare, by name."""
    import functools

    import keras

    shape = {"input_shape": (32, 32, 3), "weights": None, "classes": CLASSES}
    shape["classifier_activation"] = None
    models = {
        "MobileNetV2": functools.partial(keras.applications.MobileNetV2, **shape),
        "ResNet50V2": functools.partial(keras.applications.ResNet50V2, **shape),
        "Transformer encoder": _encoder,
    }
    return {
        f"convert, {name}": functools.partial(_compare_converted, make)
        for name, make in models.items()
    }


def _encoder():
    import keras
    from keras import layers

    x = inputs = keras.Input((16, 32), name="tokens")
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, 8)(y, y)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(64, activation="gelu")(y)
        x = x + layers.Dense(32)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def _compare_converted(make):
    import keras
    import numpy as np

    import keras_psp

    model = make()
    _draw_weights(model)
    (x,) = _draw_inputs(model)
    _normalize(model)
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, NUM_TASKS)
    name = next(name for name in one.input if name != "task")
    tasks = [np.full(NUM_EXAMPLES, task, "int32") for task in range(NUM_TASKS)]
    mixed = np.arange(NUM_EXAMPLES, dtype="int32") % NUM_TASKS

    def answer(model, task):
        return model.predict({name: x, "task": task}, verbose=0)

    found = {"spread": _spread(expected)}
    moved = np.nextafter(x, np.float32(np.inf))  # What rounding alone amounts to.
    found["inputs' last bit"] = _largest(model.predict(moved, verbose=0) - expected)
    found["each task"] = [_largest(answer(one, task) - expected) for task in tasks]
    found["mixed"] = _largest(answer(one, mixed) - expected)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    one.compile(keras.optimizers.SGD(0.01, global_clipnorm=1.0), loss)
    before = [np.array(variable) for variable in one.get_weights()]
    one.fit({name: x, "task": mixed}, np.arange(NUM_EXAMPLES) % CLASSES, verbose=0)
    changed = [
        not np.array_equal(*pair)
        for pair in zip(before, one.get_weights(), strict=True)
    ]
    found["weights changed by a fit step"] = sum(changed)
    with tempfile.TemporaryDirectory() as folder:
        one.save(Path(folder) / "one.keras")
        again = keras.models.load_model(Path(folder) / "one.keras")
    learned = answer(one, mixed)
    found["learned"] = _largest(learned - expected)
    found["file"] = _largest(answer(again, mixed) - learned)
    found["extract"] = [
        _largest(keras_psp.extract(one, k).predict(x, verbose=0) - answer(one, task))
        for k, task in enumerate(tasks)
    ]
    return found


def _superpositions():
    import functools

    from keras_psp.contexts import FAMILIES

    return {
        f"superpose, {family}": functools.partial(_compare_superposed, family)
        for family in FAMILIES
    }


def _compare_superposed(family):
    import keras_psp

    models = [_encoder() for _ in range(NUM_TASKS)]
    for k, model in enumerate(models):
        _draw_weights(model, k)
    one = keras_psp.superpose(models, family, base=models[0])
    return _compare_extracted(one)


def _builders():
    import functools

    from keras_psp.contexts import FAMILIES
    from keras_psp.models import mlp
    from keras_psp.models import resnet18

    perceptron = functools.partial(mlp, (8, 8, 1), CLASSES, NUM_TASKS, 32, 2)
    resnet = functools.partial(resnet18, (16, 16, 3), CLASSES, NUM_TASKS, width=0.0625)
    models = {}
    for family in FAMILIES:
        models[f"mlp, {family}"] = functools.partial(perceptron, context=family)
        models[f"resnet18, {family}"] = functools.partial(resnet, context=family)
    for options in (
        {"head": "multi"},
        {"head": "shared"},
        {"soft": True},
        {"context": "complex", "complex_valued": True},
    ):
        models[f"mlp, {options}"] = functools.partial(perceptron, **options)
    for options in (
        {"context_over": "channels"},
        {"norm": "shared"},
        {"norm": "group", "head": "multi"},
        {"norm": "task", "head": "multi", "context": None},
        {"norm": "task", "head": "shared", "stem": "imagenet"},
    ):
        models[f"resnet18, {options}"] = functools.partial(resnet, **options)
    return {
        f"extract, {name}": functools.partial(_compare_built, make)
        for name, make in models.items()
    }


def _compare_built(make):
    model = make()
    _draw_weights(model)
    return _compare_extracted(model)


def _compare_extracted(model):
    import keras
    import numpy as np

    import keras_psp

    name = next(name for name in model.input if name != "task")
    (x,) = _draw_inputs(model)
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
    return {"spread": min(spreads), "extract": differences}


def _draw_weights(model, seed=SEED):
    """Gives what begins alike, for all tasks and channels, values of its own."""
    import keras
    import numpy as np

    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "bias", "moving_mean", "moving_variance"):
            values = keras.ops.convert_to_numpy(weight)
            noise = rng.uniform(-0.1, 0.1, size=values.shape)
            weight.assign(values + noise)


def _normalize(model):
    """Gives normalizations the statistics of some inputs, which else fade away."""
    import keras

    (x,) = _draw_inputs(model, number=128, seed=SEED + 1)
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _draw_inputs(model, number=NUM_EXAMPLES, seed=SEED):
    import numpy as np

    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(number, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
        if tensor.name != "task"
    ]


def _largest(values):
    import numpy as np

    return float(np.abs(values).max())


def _spread(outputs):
    return _largest(outputs - outputs.mean(axis=0))


def _markdown(content):
    lines = ["| largest difference | " + " | ".join(content) + " |"]
    lines.append("|---" * (len(content) + 1) + "|")
    first = next(iter(content.values()))["differences"]
    for name, found in first.items():
        for what in found:
            cells = (done["differences"][name][what] for done in content.values())
            cells = (
                f"{max(cell) if isinstance(cell, list) else cell:.3g}" for cell in cells
            )
            lines.append(f"| {name}: {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
