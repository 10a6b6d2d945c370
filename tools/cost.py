"""What superposed layers cost beside plain `keras.layers.Dense`.

    python tools/cost.py --output cost.json                  # layers of every family
    python tools/cost.py --output cost.json --crossover      # rotations of many widths
    python tools/cost.py --output cost.json --network        # the benchmark's network
    python tools/cost.py --output cost.json --resnet         # convolutions and norms
    python tools/cost.py --output cost.json --serving        # one model for eight
    python tools/cost.py --output cost.json --consolidation  # steps with and without it
    python tools/cost.py --output cost.json --markdown       # tables of what is there

Each backend has a process of its own on all the cores it is given. In every round each
model is timed once, in a new order; a ratio is the median over the rounds of a model's
time over the plain model's in the same round. A measurement takes the place of the
same one in the JSON and leaves the others there. The machine must do nothing else:
torch's threads, which spin while they wait, become many times slower if it does. The
deviation of the ratios over the rounds, under each table, tells.
"""

import argparse
import functools
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from families import NETWORKS

BACKENDS = ("jax", "tensorflow", "torch")
NUM_TASKS = 10
SEED = 0
WIDTHS = (128, 256, 512, 1024, 2048)


def main():
    """Measures, each backend in a process of its own, and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--families", nargs="+", metavar="FAMILY")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--resnet", action="store_true")
    parser.add_argument("--serving", action="store_true")
    parser.add_argument("--consolidation", action="store_true")
    parser.add_argument("--resnet-width", type=float, default=0.25)
    parser.add_argument("--markdown", action="store_true", help="measure nothing")
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_measure(args)))
        return
    content = json.loads(args.output.read_text()) if args.output.exists() else {}
    parts = [part for part in _PARTS if part != "layers" and getattr(args, part)]
    for part in [] if args.markdown else parts or ["layers"]:
        for backend in args.backends:
            print(f"{part} on {backend} ...", file=sys.stderr)
            content.setdefault(part, {})[backend] = _run(part, backend)
            args.output.write_text(json.dumps(content, indent=1))
    print(_markdown(content))


def _run(part, backend):
    done = subprocess.run(
        [sys.executable, *sys.argv, "--part", part],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure(args):
    import keras

    keras.utils.set_random_seed(SEED)
    what, settings, rows = _PARTS[args.part](args)
    packages = ("keras-psp", "keras", "numpy", keras.backend.backend())
    return {
        "what": what,
        "settings": {**settings, "tasks": NUM_TASKS, "rounds": args.rounds},
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "device": {
            "platform": platform.platform(),
            "name": str(keras.Variable(0.0).value.device),
            "cpus": len(os.sched_getaffinity(0)),
            "pinning": "none: the process may use all these CPUs",
        },
        "times": rows,
    }


def _layers(args):
    from keras_psp.contexts import FAMILIES

    shape = (args.batch_size, args.inputs, args.units, args.layers)
    settings = dict(
        zip(("batch_size", "inputs", "units", "layers"), shape, strict=True)
    )
    what = "a stack of Dense layers with ReLU between them, SGD, mean squared error"
    return what, settings, _compare_layers(args.families or FAMILIES, *shape, args)


def _crossover(args):
    families, rows = ("rotation", "fast_rotation"), []
    for width in args.widths:
        shape = (args.batch_size, width, width, args.layers)
        rows += [
            {"width": width, **row} for row in _compare_layers(families, *shape, args)
        ]
    settings = {"batch_size": args.batch_size, "layers": args.layers}
    return "the stack of layers at several widths, inputs = units", settings, rows


def _network(args):
    import keras

    from keras_psp.benchmarks import PermutedConfig
    from keras_psp.models import mlp

    config = PermutedConfig(source="mnist", tasks=NUM_TASKS)
    inputs = keras.Input((784,), name="image")
    x = keras.layers.Flatten()(inputs)
    for _ in range(config.depth):
        x = keras.layers.Dense(config.units, use_bias=False)(x)
        x = keras.layers.ReLU()(x)
    logits = keras.layers.Dense(10, use_bias=False)(x)
    task = keras.Input((), dtype="int32", name="task")
    models = {"plain": keras.Model({"image": inputs, "task": task}, logits)}
    for name, options in NETWORKS.items():
        if not args.families or options["context"] in args.families:
            models[name] = mlp(
                (784,), 10, NUM_TASKS, units=config.units, depth=config.depth, **options
            )
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(config.build_optimizer(), loss)
    batch = _draw_batch(config.batch_size, 784)
    rows = _compare(models, *batch, args.rounds, ["training"], ["one"])
    settings = {"batch_size": config.batch_size, "optimizer": config.optimizer}
    return "a training step of 784 -> 3 x 256 -> 10 without biases", settings, rows


def _resnet(args):
    import keras

    from keras_psp.models import resnet18

    plain = {"context": None, "head": "shared", "norm": "shared"}
    variants = {"plain": plain, "plain, task norm": {**plain, "norm": "task"}}
    for over in ("kernel", "channels"):
        for norm in ("shared", "task"):
            options = {"context_over": over, "norm": norm}
            variants[f"{over}, {norm} norm"] = options
    models = {
        name: resnet18((32, 32, 3), 10, NUM_TASKS, width=args.resnet_width, **options)
        for name, options in variants.items()
    }
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(), loss)
    settings = {"batch_size": 64, "width": args.resnet_width, "context": "binary"}
    what = "resnet18 on 32x32 images, SGD"
    batch = _draw_batch(64, 32, 32, 3)
    return what, settings, _compare(models, *batch, args.rounds)


def _serving(args):
    """Eight networks in turn on their shares of a batch, and one on all of it."""
    import numpy as np

    import keras_psp

    number, batch_size = 8, 64
    shapes = {"mlp": (784,), "resnet18": (32, 32, 3)}
    options = {"head": "multi", "norm": "task", "width": args.resnet_width}
    resnet18 = functools.partial(
        keras_psp.models.resnet18, shapes["resnet18"], 10, **options
    )
    plain = {
        "mlp": keras_psp.models.mlp(shapes["mlp"], 10, 1, units=512, depth=2),
        "resnet18": resnet18(1, context=None),
    }
    calls, sizes = {}, {}
    for kind, model in plain.items():
        models = [keras_psp.extract(model, 0) for _ in range(number)]
        superposed = {
            "superposed": keras_psp.superpose(models),
            "superposed, with a base": keras_psp.superpose(models, base=models[0]),
        }
        if kind == "resnet18":
            channels = resnet18(number, context_over="channels")
            superposed["superposed, over channels"] = channels
        rng = np.random.default_rng(SEED)
        x = rng.normal(size=(batch_size, *shapes[kind])).astype("float32")
        task = np.repeat(np.arange(number, dtype="int32"), batch_size // number)
        order = rng.permutation(batch_size)
        mixed = {"image": x[order], "task": task[order]}
        shares = x.reshape(number, -1, *shapes[kind])

        def in_turn(models=models, shares=shares):
            return [
                each.predict_on_batch(share)
                for each, share in zip(models, shares, strict=True)
            ]

        calls["plain", kind, "mixed"] = in_turn
        sizes[kind] = {"plain": sum(map(_bytes, models))}
        # What no network that answers for eight can be faster than.
        one = functools.partial(models[0].predict_on_batch, x)
        calls["one plain network for all", kind, "mixed"] = one
        for name, each in superposed.items():
            one = functools.partial(each.predict_on_batch, mixed)
            calls[name, kind, "mixed"] = one
            sizes[kind][name] = _bytes(each)
    settings = {"batch_size": batch_size, "models": number, "bytes": sizes}
    what = "predict_on_batch of eight models in turn (plain), and of one for all"
    return what, settings, _rows(calls, args.rounds)


def _consolidation(args):
    """Training steps of one superposed network, in each consolidation and in none."""
    import keras

    from keras_psp.benchmarks import PermutedConfig
    from keras_psp.models import mlp

    models = {}
    for name in ("none", "ewc", "si", "gram"):
        config = PermutedConfig(
            source="mnist", tasks=NUM_TASKS, consolidation=name, schedule="cosine"
        )
        sizes = {key: getattr(config, key) for key in ("depth", "units", "context")}
        model = mlp((784,), 10, NUM_TASKS, **sizes)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(config.build_optimizer(), loss)
        models["plain" if name == "none" else name] = model
    # As many steps at a time as there are between two of Gram's that cost more.
    every = models["gram"].optimizer.every
    batch = _draw_batch(config.batch_size, 784)
    rows = _compare(models, *batch, args.rounds, ["training"], ["one"], every)
    settings = {"batch_size": config.batch_size, **sizes}
    return "a training step of 784 -> 3 x 256 -> 10, plain: none", settings, rows


def _draw_batch(batch_size, *shape):
    """Images that mean nothing, and labels."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(batch_size, *shape)).astype("float32")
    return images, rng.integers(10, size=batch_size).astype("int32")


def _bytes(model):
    import keras

    return sum(keras.ops.convert_to_numpy(weight).nbytes for weight in model.weights)


_PARTS = {
    "layers": _layers,
    "crossover": _crossover,
    "network": _network,
    "resnet": _resnet,
    "serving": _serving,
    "consolidation": _consolidation,
}


def _compare_layers(families, batch_size, inputs, units, layers, args):
    import keras
    import numpy as np

    from keras_psp.layers import PSPDense

    def build(family):
        x = image = keras.Input((inputs,), name="image")
        task = keras.Input((), dtype="int32", name="task")
        for i in range(layers):
            activation = "relu" if i < layers - 1 else None
            if family == "plain":
                x = keras.layers.Dense(units, activation=activation)(x)
            else:
                layer = PSPDense(units, NUM_TASKS, family, activation=activation)
                x = layer(x, task)
        model = keras.Model({"image": image, "task": task}, x)
        model.compile(keras.optimizers.SGD(), "mse")
        return model

    models = {family: build(family) for family in ("plain", *families)}
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(batch_size, inputs)).astype("float32")
    y = rng.normal(size=(batch_size, units)).astype("float32")
    return _compare(models, x, y, args.rounds)


def _compare(
    models,
    x,
    y,
    rounds,
    kinds=("forward", "training"),
    arrangements=("one", "mixed"),
    multiple=1,
):
    """Times models and returns a row for each one's times and ratios."""
    import numpy as np
    from keras import ops

    rng = np.random.default_rng(SEED)
    tasks = {"one": np.full(len(x), 3), "mixed": rng.integers(NUM_TASKS, size=len(x))}
    x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    inputs = {
        name: {"image": x, "task": ops.convert_to_tensor(tasks[name].astype("int32"))}
        for name in arrangements
    }
    calls = {}
    for name, model in models.items():
        functions = _functions(model, inputs[arrangements[0]], y)
        for kind in kinds:
            for arrangement in arrangements:
                call = functools.partial(functions[kind], inputs[arrangement])
                calls[name, kind, arrangement] = call
    return _rows(calls, rounds, multiple)


def _rows(calls, rounds, multiple=1):
    """Times calls in turn; their keys are `(name, kind, arrangement)`."""
    repeats = {
        key: multiple * math.ceil(_repeats(call) / multiple)
        for key, call in calls.items()
    }
    times = {key: [] for key in calls}
    order = random.Random(SEED)
    for _ in range(rounds):
        for key in order.sample(list(calls), len(calls)):
            times[key].append(_milliseconds(calls[key], repeats[key]))
    return [_row(key, repeats[key], times) for key in calls]


def _functions(model, inputs, targets):
    """The compiled functions inside `predict()` and `fit()`, to call with inputs.

    `predict_on_batch()` and `train_on_batch()`, which make them, also copy the outputs
    to NumPy and, on JAX, gather all weights before each call.
    """
    import keras

    model.train_on_batch(inputs, targets)
    model.predict_on_batch(inputs)
    if keras.backend.backend() != "jax":
        return {
            "forward": lambda x: model.predict_function([(x,)]),
            "training": lambda x: model.train_function([(x, targets, None)]),
        }
    # As in `fit()`, each call is given the state that the one before returned.
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = [[variable.value for variable in group] for group in variables]

    def forward(x):
        outputs, state[:2] = model.predict_function(tuple(state[:2]), iter([(x,)]))
        return outputs

    def training(x):
        batch = iter([(x, targets, None)])
        logs, state[:] = model.train_function(tuple(state), batch)
        return logs

    return {"forward": forward, "training": training}


def _repeats(call):
    """How many calls make one time: a tenth of a second's, but at least three."""
    _milliseconds(call, 1)
    return max(3, round(100 / _milliseconds(call, 1)))


def _milliseconds(call, repeats):
    _wait(call())  # Brings this model's weights back into the caches.
    start = time.perf_counter()
    for _ in range(repeats):
        outputs = call()
    _wait(outputs)
    return 1000 * (time.perf_counter() - start) / repeats


def _wait(outputs):
    import keras

    keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0])


def _row(key, repeats, times):
    name, kind, arrangement = key
    mine, plain = times[key], times["plain", kind, arrangement]
    ratios = [a / b for a, b in zip(mine, plain, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "name": name,
        "kind": kind,
        "arrangement": arrangement,
        "calls": repeats,
        "ms": [round(ms, 4) for ms in mine],
        "median_ms": statistics.median(mine),
        "ratio": ratio,
        "ratio_deviation": statistics.median(abs(r / ratio - 1) for r in ratios),
        "ratio_of_medians": statistics.median(mine) / statistics.median(plain),
    }


def _markdown(content):
    lines = []
    for part, backends in content.items():
        for backend, done in backends.items():
            lines += [f"### {part}, {backend}", "", *_table(done["times"]), ""]
            described = [
                *(f"{name}={value}" for name, value in done["settings"].items()),
                f"seed={done['seed']}",
                *(f"{name} {version}" for name, version in done["versions"].items()),
            ]
            deviations = [row["ratio_deviation"] for row in done["times"]]
            noise = f"ratios over the rounds: median deviation {max(deviations):.0%}"
            device = "{name} of {platform}, {cpus} CPUs".format(**done["device"])
            lines += [
                f"{done['what']}; {', '.join(described)}; {device}; {noise} or less.",
                "",
            ]
    return "\n".join(lines)


def _table(rows):
    """A line for each model, its times relative to plain Dense; plain's own in ms."""
    columns, lines = {}, {}
    for row in rows:
        column = f"{row['kind']}, {row['arrangement']}"
        columns[column] = None
        ms, ratio = f"{row['median_ms']:.2f} ms", f"{row['ratio']:.2f}"
        label = " ".join(
            [*([str(row["width"])] if "width" in row else []), row["name"]]
        )
        lines.setdefault(label, {})[column] = ms if row["name"] == "plain" else ratio
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for label, cells in lines.items():
        given = (cells.get(column, "") for column in columns)
        yield f"| {label} | " + " | ".join(given) + " |"


if __name__ == "__main__":
    main()
