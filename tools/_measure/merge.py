"""Keeps K fine-tuned networks in one, and tests what else one might do with them.

A network learns upright digits. Each of K copies is trained on with the digits turned
by another angle of half a circle. Then all are kept in one network. The rivals are the
mean of the kernels; task arithmetic (Ilharco et al., 2023), the base plus the sum of
all differences times the factor that does best on the examples; one bit for every
difference, with each kernel's mean size (Liu et al., 2024); and RegMean (Jin et al.,
2023), the fit without contexts. In all of them every task keeps its own biases and
normalizations. MNIST is read from `TFDS_DATA_DIR`.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np

import keras_psp
from _measure import results
from _measure import tables
from _measure.results import Row
from keras_psp import datasets
from keras_psp.datasets.task_sequence import TaskSequence

BATCH_SIZE = 128
Weights = list[np.ndarray]


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of networks and of how they are fine-tuned."""
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--network", choices=("mlp", "resnet18"), default="mlp")
    parser.add_argument("--units", type=int, default=512, help="of the mlp's layers")
    parser.add_argument("--width", type=float, default=0.25, help="of the resnet18")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tuning-epochs", type=int, default=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_network_arguments(parser)
    examples = {"type": int, "nargs": "+", "default": [2000]}
    parser.add_argument("--examples", **examples, help="of each task, unlabelled")
    families = ["binary", "fast_rotation"]
    parser.add_argument("--families", nargs="+", default=families)
    storage = {"choices": ("bytes", "bits", "seed"), "help": "of contexts' signs"}
    parser.add_argument("--storage", **storage)
    parser.add_argument("--seed", type=int, default=0)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, keeps all in one, tests, and prints a table."""
    keras.utils.set_random_seed(args.seed)
    tasks = datasets.rotating(args.source, period=2 * args.tasks, context_every=1)
    network = Network(args, tasks)
    network.train(0, args.epochs, 1e-3)
    base = network.copy()
    models = []
    for k in range(args.tasks):
        network.model.set_weights(base.get_weights())
        network.train(k, args.tuning_epochs, 2e-4)
        models.append(network.copy())
    rows = _compare(args, network, base, models)
    name = f"merge-{args.network}-{args.tasks}-tasks-{keras.backend.backend()}"
    what = "test accuracy of each task in %, memory in networks"
    result = results.save(args, name, what, rows)
    tables.show(tables.draw_merge, result)


def _compare(
    args: argparse.Namespace,
    network: "Network",
    base: keras.Model,
    models: list[keras.Model],
) -> list[Row]:
    rows: list[Row] = []
    one, each_task = _count_bytes(base), range(args.tasks)

    def add(
        system: str, accuracies: Sequence[float], size: float, examples: int = 0
    ) -> None:
        accuracies = [round(100 * float(each), 2) for each in accuracies]
        row = {"system": system, "examples": examples, "accuracy": accuracies}
        rows.append({**row, "memory": size / one})
        print(f"{system}, {examples} examples: {np.mean(accuracies):.2f} %", flush=True)

    def test(weights: Callable[[int], Weights]) -> list[float]:
        return [network.test(weights(k), k) for k in each_task]

    add(
        "fine-tuned networks", test(lambda k: models[k].get_weights()), args.tasks * one
    )
    add("the base alone", test(lambda k: base.get_weights()), one)

    # Rivals that change the kernels, and keep all the rest of each task's network.
    start, finished = _kernels(base), [_kernels(model) for model in models]
    kernels = sum(kernel.nbytes for kernel in start)
    rest = args.tasks * (one - kernels)
    sums = [
        sum(each) - args.tasks * w for w, *each in zip(start, *finished, strict=True)
    ]
    # The last examples: a network may remember the first ones best.
    images = [network.read_train(k)[-max(args.examples) :] for k in each_task]

    def add_to_base(factor: float) -> Callable[[int], Weights]:
        new = [w + factor * s for w, s in zip(start, sums, strict=True)]
        return lambda k: _with_kernels(models[k], new)

    answers = [network.answer(models[k].get_weights(), images[k]) for k in each_task]

    def agree(factor: float) -> float:
        """Returns how often tasks' own networks are agreed with: without labels."""
        weights = add_to_base(factor)
        mine = [network.answer(weights(k), images[k]) for k in each_task]
        return np.mean(np.equal(mine, answers))

    def round_to_bits(k: int) -> Weights:
        steps = [w - s for w, s in zip(finished[k], start, strict=True)]
        bits = [np.sign(step) * np.abs(step).mean() for step in steps]
        new = [s + bit for s, bit in zip(start, bits, strict=True)]
        return _with_kernels(models[k], new)

    mean = add_to_base(1 / args.tasks)
    add("mean of the kernels", test(mean), kernels + rest)
    best = add_to_base(max(np.geomspace(1 / args.tasks, 1, 10), key=agree))
    add("task arithmetic", test(best), kernels + rest, max(args.examples))
    bits = kernels * args.tasks / 32
    add("one bit a difference", test(round_to_bits), kernels + bits + rest)

    data = {n: [each[-n:] for each in images] for n in sorted(args.examples)}
    for examples, given in data.items():
        merged = keras_psp.superpose(models, "identity", data=given)
        add("RegMean", network.test_all(merged), _count_bytes(merged), examples)
    storage = {"storage": args.storage} if args.storage else {}
    kinds = {"": {"base": base}}
    if args.network == "resnet18":
        kinds[", over channels"] = {"base": base, "context_over": "channels"}
    kinds[", no base"] = {}
    for kind, options in kinds.items():
        for family in args.families:
            for examples, given in {0: None, **data}.items():
                context = keras_psp.contexts.get(family, args.tasks, **storage)
                merged = keras_psp.superpose(models, context, data=given, **options)
                system = f"superposed, {family}{kind}"
                add(system, network.test_all(merged), _count_bytes(merged), examples)
    return rows


class Network:
    """A network that is compiled once, to be trained and tested with any weights."""

    def __init__(self, args: argparse.Namespace, tasks: TaskSequence) -> None:
        if args.network == "mlp":
            self.model = _mlp(tasks, args.units)
        else:
            self.model = _resnet18(tasks, args.width)
        self.tasks = tasks
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile("adam", loss)
        optimizer = self.model.optimizer
        optimizer.build(self.model.trainable_variables)
        # Copied: on a CPU, backends may return the variable's own memory.
        self._start = [
            keras.ops.convert_to_numpy(v).copy() for v in optimizer.variables
        ]

    def train(self, task: int, epochs: int, learning_rate: float) -> None:
        optimizer = self.model.optimizer
        for variable, value in zip(optimizer.variables, self._start, strict=True):
            variable.assign(value)
        optimizer.learning_rate = learning_rate
        data = self.tasks.train(task, BATCH_SIZE)
        data = data.map(lambda inputs, label: (inputs["image"], label))
        self.model.fit(data, epochs=epochs, verbose=0)

    def copy(self) -> keras.Model:
        copy = keras.models.clone_model(self.model)
        copy.set_weights(self.model.get_weights())
        return copy

    def answer(self, weights: Weights, images: np.ndarray) -> np.ndarray:
        self.model.set_weights(weights)
        return self.model.predict(images, batch_size=1000, verbose=0).argmax(-1)

    def test(self, weights: Weights, task: int) -> float:
        images, labels = self.read_test(task)
        return np.mean(self.answer(weights, images) == labels)

    def test_all(self, one: keras.Model) -> list[float]:
        """Tests a model of all tasks on each of them."""
        accuracies = []
        for task in range(one.num_tasks):
            images, labels = self.read_test(task)
            inputs = {"image": images, "task": np.full(len(images), task, "int32")}
            answers = one.predict(inputs, batch_size=1000, verbose=0).argmax(-1)
            accuracies.append(np.mean(answers == labels))
        return accuracies

    def read_train(self, task: int) -> np.ndarray:
        batches = self.tasks.train(task, BATCH_SIZE)
        return np.concatenate([inputs["image"] for inputs, _ in batches])

    def read_test(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        batches = list(self.tasks.test(task, 1000))
        images = np.concatenate([inputs["image"] for inputs, _ in batches])
        return images, np.concatenate([labels for _, labels in batches])


def _mlp(tasks: TaskSequence, units: int) -> keras.Model:
    x = image = keras.Input(tasks.image_shape, name="image")
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(image, keras.layers.Dense(tasks.num_classes)(x))


def _resnet18(tasks: TaskSequence, width: float) -> keras.Model:
    options = {"context": None, "head": "multi", "norm": "task", "width": width}
    built = keras_psp.models.resnet18(
        tasks.image_shape, tasks.num_classes, num_tasks=1, **options
    )
    return keras_psp.extract(built, 0)


def _kernels(model: keras.Model) -> Weights:
    return [weight for weight in model.get_weights() if weight.ndim > 1]


def _with_kernels(model: keras.Model, kernels: Weights) -> Weights:
    """Returns a model's weights with other kernels."""
    new = iter(kernels)
    return [next(new) if w.ndim > 1 else w for w in model.get_weights()]


def _count_bytes(model: keras.Model) -> int:
    return sum(keras.ops.convert_to_numpy(weight).nbytes for weight in model.weights)
