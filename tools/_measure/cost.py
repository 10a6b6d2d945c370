"""Times superposed layers and networks beside plain ones.

    layers         PSPDense of every context family
    crossover      the two rotations, at several widths
    network        a training step of the permuting benchmark's network
    resnet         convolutions and normalizations
    bert           KerasHub's BertBackbone, as it is and converted
    serving        one superposed model for eight plain ones
    consolidation  a training step with and without consolidation
    first-call     the first call of MobileNetV2, which compiles it

In every round each model is timed once, in a new order. A ratio is the median over the
rounds of a model's time over the plain model's time in the same round. The machine must
do nothing else: torch's threads spin while they wait and become many times slower if it
does. `ratio_deviation`, the ratios' median deviation over the rounds, shows that.
"""

import argparse
import functools
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_psp
from _measure import results
from _measure import tables
from _measure.families import NETWORKS
from _measure.results import SEED
from _measure.results import Row
from keras_psp.benchmarks import PermutedConfig
from keras_psp.contexts import FAMILIES
from keras_psp.layers import PSPDense
from keras_psp.models import mlp
from keras_psp.models import resnet18

NUM_TASKS = 10
# What is called: the model's name, "forward" or "training", and "one" task or "mixed".
Calls = dict[tuple[str, str, str], Callable[[], Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("part", nargs="?", choices=_PARTS, default="layers")
    parser.add_argument("--families", nargs="+", metavar="FAMILY", default=FAMILIES)
    parser.add_argument("--rounds", type=int, default=10)
    clock = "count this process' CPU time, where other work runs beside"
    parser.add_argument("--cpu-time", action="store_true", help=clock)
    few = "leave out adapters, frozen embeddings and mixed batches of `bert`"
    parser.add_argument("--few", action="store_true", help=few)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    widths = (128, 256, 512, 1024, 2048)
    parser.add_argument("--widths", type=int, nargs="+", default=widths)
    parser.add_argument("--resnet-width", type=float, default=0.25)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Times the models of one part and prints a table."""
    args.families = list(args.families)
    keras.utils.set_random_seed(SEED)
    what, rows = _PARTS[args.part](args)
    name = f"cost-{args.part}-{keras.backend.backend()}"
    result = results.save(args, name, what, rows, tasks=NUM_TASKS)
    draw = tables.draw_throughput if args.part == "serving" else tables.draw_cost
    tables.show(draw, result)


def _time_layers(args: argparse.Namespace) -> tuple[str, list[Row]]:
    shape = (args.batch_size, args.inputs, args.units, args.layers)
    rows = _compare_layers(args.families, *shape, args.rounds, args.cpu_time)
    return "a stack of Dense layers with ReLU, SGD, mean squared error", rows


def _time_widths(args: argparse.Namespace) -> tuple[str, list[Row]]:
    rows = []
    for width in args.widths:
        shape = (args.batch_size, width, width, args.layers)
        rotations = ("rotation", "fast_rotation")
        timed = _compare_layers(rotations, *shape, args.rounds, args.cpu_time)
        rows += [{"width": width, **row} for row in timed]
    return "a stack of layers at several widths, inputs = units", rows


def _time_network(args: argparse.Namespace) -> tuple[str, list[Row]]:
    config = PermutedConfig(source="mnist", tasks=NUM_TASKS)
    x = inputs = keras.Input((784,), name="image")
    for _ in range(config.depth):
        x = keras.layers.Dense(config.units, use_bias=False)(x)
        x = keras.layers.ReLU()(x)
    logits = keras.layers.Dense(10, use_bias=False)(x)
    task = keras.Input((), dtype="int32", name="task")
    models = {"plain": keras.Model({"image": inputs, "task": task}, logits)}
    sizes = {"units": config.units, "depth": config.depth}
    for name, options in NETWORKS.items():
        if options["context"] in args.families:
            models[name] = mlp((784,), 10, NUM_TASKS, **sizes, **options)
    for model in models.values():
        model.compile(config.build_optimizer(), _loss())
    calls = make_calls(
        models, *_draw_batch(config.batch_size, 784), ["training"], ["one"]
    )
    return "a training step of 784 -> 3 x 256 -> 10", time_calls(
        calls, args.rounds, cpu_time=args.cpu_time
    )


def _time_resnet(args: argparse.Namespace) -> tuple[str, list[Row]]:
    plain = {"context": None, "head": "shared", "norm": "shared"}
    variants = {"plain": plain, "plain, task norm": {**plain, "norm": "task"}}
    for over in ("kernel", "channels"):
        for norm in ("shared", "task"):
            variants[f"{over}, {norm} norm"] = {"context_over": over, "norm": norm}
    models = {
        name: resnet18((32, 32, 3), 10, NUM_TASKS, width=args.resnet_width, **options)
        for name, options in variants.items()
    }
    for model in models.values():
        model.compile(keras.optimizers.SGD(), _loss())
    calls = make_calls(models, *_draw_batch(64, 32, 32, 3))
    return "resnet18 on 64 images of 32x32, SGD", time_calls(
        calls, args.rounds, cpu_time=args.cpu_time
    )


def _time_bert(args: argparse.Namespace) -> tuple[str, list[Row]]:
    import keras_hub

    length, words = 64, 1000
    image = keras.Input((length,), dtype="int32", name="image")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=words,
        num_layers=4,
        num_heads=4,
        hidden_dim=256,
        intermediate_dim=1024,
        max_sequence_length=length,
    )
    zeros = ops.zeros_like(image)
    given = {"token_ids": image, "segment_ids": zeros, "padding_mask": zeros + 1}
    logits = keras.layers.Dense(10)(backbone(given)["pooled_output"])
    task = keras.Input((), dtype="int32", name="task")
    plain = keras.Model(image, logits)
    convert = functools.partial(keras_psp.convert, plain, NUM_TASKS)
    models = {
        "plain": keras.Model({"image": image, "task": task}, logits),
        "converted": convert(shared="copy"),
    }
    if not args.few:
        models["embeddings shared"] = convert(shared="freeze")
        models["adapters"] = convert(context=None, rank=8)
    for model in models.values():
        model.compile(keras.optimizers.SGD(), _loss())
    _, labels = _draw_batch(16)
    words_drawn = np.random.default_rng(SEED).integers(words, size=(16, length))
    given = words_drawn.astype("int32")
    arrangements = ("one",) if args.few else ("one", "mixed")
    calls = make_calls(models, given, labels, arrangements=arrangements)
    what = "BertBackbone of 4 layers of 256, on 16 texts of 64 words, SGD"
    return what, time_calls(calls, args.rounds, cpu_time=args.cpu_time)


def _time_serving(args: argparse.Namespace) -> tuple[str, list[Row]]:
    """Times eight networks, each on its share of a batch, and one on all of it."""
    number, batch_size = 8, 64
    shapes = {"mlp": (784,), "resnet18": (32, 32, 3)}
    options = {"head": "multi", "norm": "task", "width": args.resnet_width}
    build = functools.partial(resnet18, shapes["resnet18"], 10, **options)
    plain = {
        "mlp": mlp(shapes["mlp"], 10, 1, units=512, depth=2),
        "resnet18": build(1, context=None),
    }
    rows = []
    for kind, model in plain.items():
        rng = np.random.default_rng(SEED)
        models = [keras_psp.extract(model, 0) for _ in range(number)]
        for each in models[1:]:
            shaken = [w + 0.01 * rng.normal(size=w.shape) for w in each.get_weights()]
            each.set_weights(shaken)
        superposed, name = {}, "superposed"
        if kind == "resnet18":
            channels = build(number, context_over="channels")
            superposed["superposed over channels"] = channels
            name = "superposed over kernels"
        superposed[name] = keras_psp.superpose(models)
        superposed[f"{name}, with a base"] = keras_psp.superpose(models, base=models[0])
        superposed["base, core and rank 32, in 4 bits"] = keras_psp.superpose(
            models, base=models[0], core=32, rank=32, bits=4
        )
        x = rng.normal(size=(batch_size, *shapes[kind])).astype("float32")
        task = np.repeat(np.arange(number, dtype="int32"), batch_size // number)
        order = rng.permutation(batch_size)
        mixed = {"image": x[order], "task": task[order]}
        pairs = list(zip(models, x.reshape(number, -1, *shapes[kind]), strict=True))
        calls = {
            "plain": lambda pairs=pairs: [m.predict_on_batch(x) for m, x in pairs],
            # No network that answers for eight can be faster than a plain one.
            "a plain network for all": functools.partial(models[0].predict_on_batch, x),
        }
        sizes = {"plain": sum(map(_count_bytes, models))}
        for name, one in superposed.items():
            calls[name] = functools.partial(one.predict_on_batch, mixed)
            sizes[name] = _count_bytes(one)
        keyed = {(name, "forward", "mixed"): call for name, call in calls.items()}
        rows += [
            {"network": kind, **row, "bytes": sizes.get(row["name"])}
            for row in time_calls(keyed, args.rounds, cpu_time=args.cpu_time)
        ]
    return "predict_on_batch of eight models in turn (plain), and of one for all", rows


def _time_consolidation(args: argparse.Namespace) -> tuple[str, list[Row]]:
    own: dict[str, Any] = {"consolidation": "gram", "head": "multi", "rank": 4}
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        **{name: {"consolidation": name} for name in ("ewc", "si", "gram")},
        "gram, rank 4": own,
        "gram, rank 4, 50 tasks": {**own, "tasks": 50},
    }
    keys = ("depth", "units", "context", "head")
    models = {}
    for name, given in options.items():
        given = {"source": "mnist", "tasks": NUM_TASKS, "schedule": "cosine", **given}
        config = PermutedConfig(**given)
        sizes = {key: getattr(config, key) for key in keys}
        rank = config.rank or None
        model = models[name] = mlp((784,), 10, config.tasks, rank=rank, **sizes)
        model.compile(config.build_optimizer(), _loss())
    calls = make_calls(
        models, *_draw_batch(config.batch_size, 784), ["training"], ["one"]
    )
    # As many steps at a time as there are between two of Gram's that take longer.
    every = models["gram"].optimizer.every
    rows = time_calls(calls, args.rounds, every, args.cpu_time)
    return "a training step of 784 -> 3 x 256 -> 10, plain: no consolidation", rows


def _time_first_calls(args: argparse.Namespace) -> tuple[str, list[Row]]:
    """Times the first `predict_on_batch` and `train_on_batch` of models just built."""
    shape, num_tasks = (96, 96, 3), 3

    def build(converted: bool) -> keras.Model:
        model = keras.applications.MobileNetV2(shape, weights=None, classes=10)
        if converted:
            model = keras_psp.convert(model, num_tasks)
        model.compile(keras.optimizers.SGD(), _loss())
        return model

    images, labels = _draw_batch(8, *shape)
    given = {
        "plain": images,
        "converted": [images, np.zeros(len(images), "int32")],
    }
    clock = time.process_time if args.cpu_time else time.perf_counter
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(args.rounds):
        for kind, name in itertools.product(("forward", "training"), given):
            model = build(name == "converted")
            start = clock()
            if kind == "forward":
                model.predict_on_batch(given[name])
            else:
                model.train_on_batch(given[name], labels)
            taken = 1000 * (clock() - start)
            times.setdefault((name, kind, "one"), []).append(taken)
            keras.utils.clear_session()
    what = "the first call of MobileNetV2 on 8 images of 96x96, as it is and converted"
    return what, [_row(key, 1, times) for key in times]


_PARTS = {
    "layers": _time_layers,
    "crossover": _time_widths,
    "network": _time_network,
    "resnet": _time_resnet,
    "bert": _time_bert,
    "serving": _time_serving,
    "consolidation": _time_consolidation,
    "first-call": _time_first_calls,
}


def _loss() -> keras.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _draw_batch(batch_size: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images of noise, and labels."""
    rng = np.random.default_rng(SEED)
    images = rng.normal(size=(batch_size, *shape)).astype("float32")
    return images, rng.integers(10, size=batch_size).astype("int32")


def _count_bytes(model: keras.Model) -> int:
    return sum(ops.convert_to_numpy(weight).nbytes for weight in model.weights)


def _compare_layers(
    families: Iterable[str],
    batch_size: int,
    inputs: int,
    units: int,
    layers: int,
    rounds: int,
    cpu_time: bool,
) -> list[Row]:
    def build(family: str) -> keras.Model:
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
    return time_calls(make_calls(models, x, y), rounds, cpu_time=cpu_time)


def make_calls(
    models: dict[str, keras.Model],
    x: np.ndarray,
    y: np.ndarray,
    kinds: Iterable[str] = ("forward", "training"),
    arrangements: Iterable[str] = ("one", "mixed"),
    num_tasks: int = NUM_TASKS,
) -> Calls:
    """Returns what to time: each model, forward and training, one task and mixed."""
    rng = np.random.default_rng(SEED)
    one = min(3, num_tasks - 1)
    tasks = {"one": np.full(len(x), one), "mixed": rng.integers(num_tasks, size=len(x))}
    x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    inputs = {
        name: {"image": x, "task": ops.convert_to_tensor(tasks[name].astype("int32"))}
        for name in arrangements
    }
    calls = {}
    for name, model in models.items():
        functions = _functions(model, next(iter(inputs.values())), y)
        for kind in kinds:
            for arrangement, given in inputs.items():
                call = functools.partial(functions[kind], given)
                calls[name, kind, arrangement] = call
    return calls


def _functions(
    model: keras.Model, inputs: dict[str, Any], targets: Any
) -> dict[str, Callable[[Any], Any]]:
    """Returns the compiled functions inside `predict()` and `fit()`.

    `predict_on_batch()` and `train_on_batch()`, which make them, also copy the outputs
    to NumPy and, on JAX, gather all weights before each call.
    """
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

    def forward(x: Any) -> Any:
        outputs, state[:2] = model.predict_function(tuple(state[:2]), iter([(x,)]))
        return outputs

    def training(x: Any) -> Any:
        batch = iter([(x, targets, None)])
        logs, state[:] = model.train_function(tuple(state), batch)
        return logs

    return {"forward": forward, "training": training}


def time_calls(
    calls: Calls, rounds: int, multiple: int = 1, cpu_time: bool = False
) -> list[Row]:
    """Times all calls in turn and returns a row for each, with its ratio to plain.

    Args:
        calls: What to time.
        rounds: How often.
        multiple: Of this, the number of calls at a time is a multiple.
        cpu_time: Whether to count what this process alone has of the processors, all
            its threads together.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    # A time is of a tenth of a second's calls, but of at least three.
    repeats = {}
    for key, call in calls.items():
        _milliseconds(call, 1, clock)
        number = max(3, round(100 / _milliseconds(call, 1, clock)))
        repeats[key] = multiple * math.ceil(number / multiple)
    times = {key: [] for key in calls}
    order = random.Random(SEED)
    for _ in range(rounds):
        for key in order.sample(list(calls), len(calls)):
            times[key].append(_milliseconds(calls[key], repeats[key], clock))
    return [_row(key, repeats[key], times) for key in calls]


def _milliseconds(
    call: Callable[[], Any], repeats: int, clock: Callable[[], float]
) -> float:
    _wait(call())  # Brings this model's weights back into the caches.
    start = clock()
    for _ in range(repeats):
        outputs = call()
    _wait(outputs)
    return 1000 * (clock() - start) / repeats


def _wait(outputs: Any) -> None:
    ops.convert_to_numpy(keras.tree.flatten(outputs)[0])


def _row(key: tuple[str, str, str], repeats: int, times: dict) -> Row:
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
    }
