"""Trains four adapters of one GPT-2 on four texts, and generates with all at once.

A small `GPT2CausalLM` reads the ASCII characters of this repository: its prose, Python,
JSON results, and the prose in rot13. It first learns all of them together. Then
`convert(model, names, context=None, rank=)` gives each text an adapter, and one `fit`
of mixed batches trains them. `text` rows hold the loss on text that was not trained on:
of the base, of the text's own adapter, and of the best other one. Then prompts of all
texts are continued greedily: in one batch, and by one call for each text. `differ`
counts the characters that are not the same. In each round both are timed, in a new
order; the ratio is the median over the rounds. `bytes` rows count the weights of K
adapters with their base, and of K models.
"""

import argparse
import codecs
import random
import statistics
import time
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_psp
from _measure import results
from _measure import tables
from _measure.results import ROOT
from _measure.results import SEED
from _measure.results import Row

CHARACTERS = 128
FILES = {
    "prose": "**/README.md",
    "Python": "keras_psp/**/*.py",
    "JSON": "tools/results/*.json",
}
Texts = dict[str, tuple[np.ndarray, np.ndarray]]  # To train with, and to test with.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--steps", type=int, default=400, help="of base and adapters")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=64, help="of texts")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], help="a task")
    parser.add_argument("--tasks", type=int, nargs="+", default=[4, 100], help="kept")
    parser.add_argument("--rounds", type=int, default=7)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, generates, counts and prints a table."""
    keras.utils.set_random_seed(SEED)
    texts = read_texts()
    base = _build(args)
    compile_options = {"sampler": "greedy", "metrics": [], "weighted_metrics": []}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    base.compile(keras.optimizers.Adam(2e-3), loss, **compile_options)
    _fit(base, texts, args)
    names = list(texts)
    adapters = keras_psp.convert(base, names, context=None, rank=args.rank)
    optimizer = keras_psp.optimizers.PerTask(keras.optimizers.Adam(2e-3))
    adapters.compile(optimizer, loss, **compile_options)
    _fit(adapters, texts, args, with_task=True)
    rows = [*_compare_losses(base, adapters, texts, args)]
    rows += [_compare_generated(adapters, texts, n, args) for n in args.prompts]
    for number in args.tasks:
        kept = keras_psp.convert(base, number, context=None, rank=args.rank)
        many = number * _count_bytes(base)
        rows.append({"bytes": number, "adapters": _count_bytes(kept), "models": many})
    what = "adapters of one language model, in one batch and one after the other"
    environment = results.describe_environment("keras-hub")
    name = f"adapters-{keras.backend.backend()}"
    result = results.save(args, name, what, rows, environment)
    tables.show(tables.draw_adapters, result)


def read_texts() -> Texts:
    """Returns the characters of each text; each fifth part of it is to test with."""
    read = {}
    for name, pattern in FILES.items():
        paths = sorted(ROOT.glob(pattern))
        text = "".join(path.read_text(encoding="utf-8") for path in paths)
        read[name] = text.encode("ascii", "ignore").decode()
    read["prose in rot13"] = codecs.encode(read["prose"], "rot13")
    parted = {}
    for name, text in read.items():
        parts = np.array_split(np.frombuffer(text.encode(), "uint8").astype(int), 50)
        tests = parts[::5]
        del parts[::5]
        parted[name] = np.concatenate(parts), np.concatenate(tests)
    return parted


def _build(args: argparse.Namespace) -> Any:
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=CHARACTERS,
        num_layers=args.layers,
        num_heads=4,
        hidden_dim=args.width,
        intermediate_dim=4 * args.width,
        max_sequence_length=args.length,
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def _draw(text: np.ndarray, number: int, length: int, rng: np.random.Generator) -> Any:
    """Returns characters, and those that come after each."""
    first = rng.integers(len(text) - length - 1, size=number)
    found = np.stack([text[i : i + length + 1] for i in first]).astype("int32")
    return found[:, :-1], found[:, 1:]


def _inputs(ids: np.ndarray, task: Any = None) -> dict[str, np.ndarray]:
    found = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    if task is not None:
        found["task"] = np.broadcast_to(np.asarray(task, "int32"), len(ids)).copy()
    return found


def _fit(
    model: Any, texts: Texts, args: argparse.Namespace, with_task: bool = False
) -> None:
    """Trains on batches with four pieces of each text."""
    rng = np.random.default_rng(SEED)
    drawn = [
        _draw(train, 4 * args.steps, args.length, rng) for train, _ in texts.values()
    ]
    x, y = (
        np.stack(each, axis=1).reshape(-1, args.length)
        for each in zip(*drawn, strict=True)
    )
    task = np.tile(np.arange(len(texts)), 4 * args.steps) if with_task else None
    size = 4 * len(texts)
    model.fit(_inputs(x, task), y, batch_size=size, shuffle=False, verbose=0)


def _compare_losses(
    base: Any, adapters: Any, texts: Texts, args: argparse.Namespace
) -> list[Row]:
    rng, rows = np.random.default_rng(SEED + 1), []
    for own, (name, (_, tests)) in enumerate(texts.items()):
        x, y = _draw(tests, 64, args.length, rng)
        plain = base.evaluate(_inputs(x), y, verbose=0)
        losses = [
            adapters.evaluate(_inputs(x, task), y, verbose=0)
            for task in range(len(texts))
        ]
        other = min(losses[:own] + losses[own + 1 :])
        rows.append({"text": name, "base": plain, "own": losses[own], "other": other})
    return rows


def _compare_generated(
    adapters: Any, texts: Texts, number: int, args: argparse.Namespace
) -> Row:
    """Continues `number` prompts of each text, in one batch and one text at a time."""
    rng, given = np.random.default_rng(SEED + 2), args.length // 4
    drawn = [_draw(tests, number, args.length, rng)[0] for _, tests in texts.values()]
    ids = np.concatenate(drawn)
    ids[:, given:] = 0
    mask = np.broadcast_to(np.arange(args.length) < given, ids.shape).astype("int32")
    names = np.repeat(list(texts), number).tolist()

    def generate(task: Any, rows: slice) -> np.ndarray:
        prompts = {"token_ids": ids[rows], "padding_mask": mask[rows]}
        with keras_psp.task(task):
            found = adapters.generate(prompts, stop_token_ids=None)["token_ids"]
        return ops.convert_to_numpy(found)

    ways = {
        "mixed": lambda: generate(names, slice(None)),
        "one by one": lambda: np.concatenate(
            [
                generate(name, slice(i * number, (i + 1) * number))
                for i, name in enumerate(texts)
            ]
        ),
    }
    found = {way: call() for way, call in ways.items()}  # Compiles, too.
    differ = int((found["mixed"] != found["one by one"]).sum())
    order, draw = list(ways), random.Random(SEED)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        draw.shuffle(order)
        for way in order:
            before = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - before)
    made = len(ids) * (args.length - given)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    rates = {way: made / statistics.median(each) for way, each in seconds.items()}
    distinct = len({tuple(row) for row in found["mixed"][:, given:]})
    return {
        "prompts": len(ids),
        "characters": made,
        "differ": differ,
        "distinct": distinct,
        **rates,
        "ratio": statistics.median(ratios),
    }


def _count_bytes(model: keras.Model) -> int:
    return sum(ops.convert_to_numpy(weight).nbytes for weight in model.weights)
