"""Times a ResNet18 and an encoder of 12 layers on a GPU, beside plain Keras.

    python tools/measure.py gpu --backends jax torch

Images, or tokens, a second: forward and in training, in batches of one task and in
batches of 64 tasks mixed. It takes less than ten minutes on one GPU. It also runs on a
CPU, and then says so in its title; use small sizes there.
"""

import argparse

import keras
import numpy as np

import keras_psp
from _measure import cost
from _measure import results
from _measure import tables
from _measure.results import SEED
from _measure.results import Row

NUM_TASKS = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32", help="such as mixed_bfloat16")
    parser.add_argument("--images", type=int, default=256, help="in a batch")
    parser.add_argument("--resnet-width", type=float, default=1.0)
    parser.add_argument("--texts", type=int, default=64, help="in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--units", type=int, default=768)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Times both networks and prints a table for each."""
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(args.dtype)
    rows = [*_time_resnet(args), *_time_encoder(args)]
    device = results.describe_environment()["device"]["name"]
    where = "a GPU" if any(x in device.lower() for x in ("gpu", "cuda")) else "a CPU"
    what = f"images and tokens a second on {where}, forward and in training, SGD"
    name = f"gpu-{keras.backend.backend()}"
    result = results.save(args, name, what, rows, tasks=NUM_TASKS)
    print(what)
    tables.show(tables.draw_per_second, result)


def _time_resnet(args: argparse.Namespace) -> list[Row]:
    shape, width = (32, 32, 3), args.resnet_width
    plain = {"context": None, "head": "shared", "norm": "shared"}
    variants = {
        "plain": plain,
        "over kernels": {"norm": "task"},
        "over channels": {"norm": "task", "context_over": "channels"},
    }
    models = {
        name: keras_psp.models.resnet18(shape, 10, NUM_TASKS, width=width, **options)
        for name, options in variants.items()
    }
    x = np.random.default_rng(SEED).normal(size=(args.images, *shape))
    return _time("ResNet18", models, x, args.images, args.rounds)


def _time_encoder(args: argparse.Namespace) -> list[Row]:
    layers, units = keras.layers, args.units
    inputs = x = keras.Input((args.length, units), name="image")
    for _ in range(args.layers):
        attention = layers.MultiHeadAttention(max(1, units // 64), min(64, units))
        normed = layers.LayerNormalization()(x)
        x = layers.Add()([x, attention(normed, normed)])
        normed = layers.LayerNormalization()(x)
        hidden = layers.Dense(4 * units, activation="gelu")(normed)
        x = layers.Add()([x, layers.Dense(units)(hidden)])
    outputs = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
    plain = keras.Model(inputs, outputs)
    task = keras.Input((), dtype="int32", name="task")
    models = {
        "plain": keras.Model({"image": inputs, "task": task}, plain(inputs)),
        "superposed": keras_psp.convert(plain, NUM_TASKS),
        "low rank alone": keras_psp.convert(plain, NUM_TASKS, context=None, rank=8),
    }
    x = np.random.default_rng(SEED).normal(size=(args.texts, args.length, units))
    name = f"encoder of {args.layers} layers"
    return _time(name, models, x, args.texts * args.length, args.rounds)


def _time(
    network: str,
    models: dict[str, keras.Model],
    x: np.ndarray,
    count: int,
    rounds: int,
) -> list[Row]:
    """Returns a row for each model and call; `count` is what a batch holds."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model in models.values():
        model.compile(keras.optimizers.SGD(1e-3), loss)
    y = np.random.default_rng(SEED).integers(10, size=len(x)).astype("int32")
    calls = cost.make_calls(models, x.astype("float32"), y, num_tasks=NUM_TASKS)
    return [
        {"network": network, **row, "per_second": 1000 * count / row["median_ms"]}
        for row in cost.time_calls(calls, rounds)
    ]
