"""K fine-tuned networks in one, and what else one might do with them.

    TFDS_DATA_DIR=... python tools/merge.py --output merge.json
    python tools/merge.py --output merge.json --report merge    # merge.md, merge.png

A network learns upright digits; each of K networks goes on from there with the digits
turned by another angle, of half a circle. Then all are kept in one network. Rivals: the
mean of the kernels; task arithmetic (Ilharco et al., 2023), the base and the sum of all
differences times the factor that does best on the examples; one bit for every
difference, with each kernel's mean size (Liu et al., 2024); and RegMean (Jin et al.,
2023), which is the fit without contexts. Whatever is no kernel every task keeps as it
is, in all of them. A measurement takes the place of the same one in the JSON and leaves
the others there.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path

import keras
import numpy as np

import keras_psp
from keras_psp import datasets
from keras_psp.datasets.task_sequence import TaskSequence

BATCH_SIZE = 128


def main():
    """Trains, keeps all in one, tests, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--network", choices=("mlp", "resnet18"), default="mlp")
    parser.add_argument("--units", type=int, default=512, help="of the mlp's layers")
    parser.add_argument("--width", type=float, default=0.25, help="of the resnet18")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tuning-epochs", type=int, default=1)
    examples = {"type": int, "nargs": "+", "default": [2000]}
    parser.add_argument("--examples", **examples, help="of each task, unlabelled")
    families = ["binary", "fast_rotation"]
    parser.add_argument("--families", nargs="+", default=families)
    storage = {"choices": ("bytes", "bits", "seed"), "help": "of contexts' signs"}
    parser.add_argument("--storage", **storage)
    parser.add_argument("--seed", type=int, default=0)
    report = {"type": Path, "metavar": "NAME"}
    parser.add_argument("--report", **report, help="of what is there; measures nothing")
    args = parser.parse_args()
    content = json.loads(args.output.read_text()) if args.output.exists() else []
    if not args.report:
        done = _measure(args)
        content = [each for each in content if each["config"] != done["config"]]
        content.append(done)
        args.output.write_text(json.dumps(content, indent=1))
        print(_markdown(done))
        return
    args.report.with_suffix(".md").write_text("\n\n".join(map(_markdown, content)))
    _plot(content).savefig(args.report.with_suffix(".png"), dpi=120)
    print(args.report.with_suffix(".md").read_text())


def _measure(args):
    keras.utils.set_random_seed(args.seed)
    tasks = datasets.rotating(args.source, period=2 * args.tasks, context_every=1)
    network = _Network(args, tasks)
    network.train(0, args.epochs, 1e-3)
    base = network.copy()
    models = []
    for k in range(args.tasks):
        network.model.set_weights(base.get_weights())
        network.train(k, args.tuning_epochs, 2e-4)
        models.append(network.copy())
    # The last ones: the first may be what a network remembers best.
    images = [
        np.concatenate([x["image"] for x, _ in tasks.train(k, BATCH_SIZE)])
        for k in range(args.tasks)
    ]
    data = {n: [each[-n:] for each in images] for n in sorted(args.examples)}
    most = data[max(data)]

    systems = {}

    def add(name, accuracies, numbers, examples=0):
        systems[name] = {
            "accuracies": [float(each) for each in accuracies],
            "numbers": numbers,
            "examples": examples,
        }
        print(f"{name}: {100 * np.mean(accuracies):.2f} %", flush=True)

    def add_kernels(name, kernels, examples=0, bits=0):
        """Tests kernels, for each task, with all the rest of the task's own."""
        accuracies = [network.test(_keep(models[k], kernels[k]), k) for k in each_task]
        kept = sum(_count(models[0]) - size for _ in models)
        add(name, accuracies, size * (1 + bits / 32) + kept, examples)

    each_task = range(args.tasks)
    of_base, weights = _kernels(base), [_kernels(model) for model in models]
    size = sum(kernel.size for kernel in of_base)
    accuracies = [
        network.test(model.get_weights(), k) for k, model in enumerate(models)
    ]
    add("fine-tuned networks", accuracies, args.tasks * _count(base))
    accuracies = [network.test(base.get_weights(), k) for k in each_task]
    add("the base alone", accuracies, _count(base))
    steps = [
        [w - start for w, start in zip(each, of_base, strict=True)] for each in weights
    ]
    sums = [sum(each) for each in zip(*steps, strict=True)]

    def add_to_base(factor):
        return [w + factor * s for w, s in zip(of_base, sums, strict=True)]

    add_kernels("mean of the kernels", [add_to_base(1 / args.tasks)] * args.tasks)
    answers = [network.answer(models[k].get_weights(), most[k]) for k in each_task]

    def agree(factor):
        """How often it answers as the tasks' own networks do, which needs no labels."""
        kernels = add_to_base(factor)
        mine = [network.answer(_keep(models[k], kernels), most[k]) for k in each_task]
        return np.mean(np.equal(mine, answers))

    best = add_to_base(max(np.geomspace(1 / args.tasks, 1, 10), key=agree))
    add_kernels("task arithmetic", [best] * args.tasks, max(data))
    bits = [
        [
            w + np.sign(step) * np.abs(step).mean()
            for w, step in zip(of_base, each, strict=True)
        ]
        for each in steps
    ]
    add_kernels("one bit a difference", bits, bits=args.tasks)
    for examples, given in data.items():
        one = keras_psp.superpose(models, "identity", data=given)
        name = f"RegMean, {examples} examples"
        add(name, _test(one, network), _count(one), examples)
    storage = {"storage": args.storage} if args.storage else {}
    kinds = [(family, {"base": base}) for family in args.families]
    if args.network == "resnet18":
        kinds += [
            (f"{family}, over channels", {"base": base, "context_over": "channels"})
            for family in args.families
        ]
    kinds += [(f"{family}, no base", {}) for family in args.families]
    for kind, options in kinds:
        family = kind.split(",")[0]
        for examples, given in {0: None, **data}.items():
            context = keras_psp.contexts.get(family, num_tasks=args.tasks, **storage)
            one = keras_psp.superpose(models, context, data=given, **options)
            name = f"superposed, {kind}"
            name += f", {examples} examples" if examples else ""
            add(name, _test(one, network), _count(one), examples)
    return {
        "config": {
            key: value
            for key, value in vars(args).items()
            if key not in ("output", "report")
        },
        "backend": keras.backend.backend(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras-psp", "keras", "numpy", keras.backend.backend())
        },
        "device": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "systems": systems,
    }


class _Network:
    """A network that is compiled once, to be trained and tested with any weights."""

    def __init__(self, args, tasks: TaskSequence):
        if args.network == "mlp":
            self.model = _mlp(tasks, args.units)
        else:
            self.model = _resnet18(tasks, args.width)
        self.tasks = tasks
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile("adam", loss)
        self.model.optimizer.build(self.model.trainable_variables)
        self._start = [
            keras.ops.convert_to_numpy(v).copy() for v in self.model.optimizer.variables
        ]

    def train(self, task, epochs, learning_rate):
        for variable, value in zip(
            self.model.optimizer.variables, self._start, strict=True
        ):
            variable.assign(value)
        self.model.optimizer.learning_rate = learning_rate
        data = self.tasks.train(task, BATCH_SIZE)
        data = data.map(lambda inputs, label: (inputs["image"], label))
        self.model.fit(data, epochs=epochs, verbose=0)

    def copy(self):
        copy = keras.models.clone_model(self.model)
        copy.set_weights(self.model.get_weights())
        return copy

    def answer(self, weights, images):
        self.model.set_weights(weights)
        return self.model.predict(images, batch_size=1000, verbose=0).argmax(-1)

    def test(self, weights, task):
        images, labels = self.read_test(task)
        return np.mean(self.answer(weights, images) == labels)

    def read_test(self, task):
        batches = list(self.tasks.test(task, 1000))
        images = np.concatenate([inputs["image"] for inputs, _ in batches])
        return images, np.concatenate([labels for _, labels in batches])


def _mlp(tasks, units):
    x = image = keras.Input(tasks.image_shape, name="image")
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model(image, keras.layers.Dense(tasks.num_classes)(x))


def _resnet18(tasks, width):
    options = {"context": None, "head": "multi", "norm": "task", "width": width}
    built = keras_psp.models.resnet18(
        tasks.image_shape, tasks.num_classes, num_tasks=1, **options
    )
    return keras_psp.extract(built, 0)


def _kernels(model):
    return [weight for weight in model.get_weights() if weight.ndim > 1]


def _keep(model, kernels):
    """A model's weights, with other kernels."""
    kernels = iter(kernels)
    return [next(kernels) if w.ndim > 1 else w for w in model.get_weights()]


def _test(one, network):
    accuracies = []
    for task in range(one.num_tasks):
        images, labels = network.read_test(task)
        inputs = {"image": images, "task": np.full(len(images), task, "int32")}
        answers = one.predict(inputs, batch_size=1000, verbose=0).argmax(-1)
        accuracies.append(np.mean(answers == labels))
    return accuracies


def _count(model):
    """How many numbers of four bytes a model keeps."""
    return (
        sum(
            np.array(keras.ops.convert_to_numpy(weight)).nbytes
            for weight in model.weights
        )
        / 4
    )


def _mean(done, name):
    return 100 * np.mean(done["systems"][name]["accuracies"])


def _size(config):
    if config["network"] == "mlp":
        return f"mlp of {config['units']} units"
    return f"resnet18 of width {config['width']:g}"


def _markdown(done):
    config, systems = done["config"], done["systems"]
    tuned = _mean(done, "fine-tuned networks")
    one = systems["the base alone"]["numbers"]
    lines = [
        f"{config['tasks']} tasks, {_size(config)}, {config['source']}, "
        f"seed {config['seed']}, {done['backend']}:",
        "",
        "| | accuracy % | of the fine-tuned % | networks' memory |",
        "|---|---|---|---|",
    ]
    for name, system in systems.items():
        accuracy = _mean(done, name)
        lines.append(
            f"| {name} | {accuracy:.1f} | {100 * accuracy / tuned:.1f} "
            f"| {system['numbers'] / one:.2f} |"
        )
    return "\n".join(lines)


def _plot(content):
    """Shares of the fine-tuned accuracy, over the tasks and over the examples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    over_tasks, over_examples = figure.subplots(1, 2, sharey=True)
    for i, size in enumerate(sorted({_size(done["config"]) for done in content})):
        same = [done for done in content if _size(done["config"]) == size]
        same.sort(key=lambda done: done["config"]["tasks"])
        tasks = [done["config"]["tasks"] for done in same]
        for name, line in (("superposed", "-"), ("RegMean", "--")):
            style = {"color": f"C{i}", "linestyle": line, "marker": "o"}
            shares = [_by_examples(done, name) for done in same]
            most = [list(each.values())[-1] for each in shares]
            over_tasks.plot(tasks, most, **style, label=f"{name}, {size}")
            for number, each in zip(tasks, shares, strict=True):
                if len(each) > 2:
                    style["label"] = f"{name}, {size}, {number} tasks"
                    over_examples.plot(each.keys(), each.values(), **style)
    over_tasks.set(xlabel="tasks", ylabel="of the fine-tuned networks' accuracy (%)")
    over_tasks.set_xscale("log", base=2)
    over_tasks.xaxis.set_major_formatter("{x:.0f}")
    over_examples.set(xlabel="unlabelled examples of each task")
    over_examples.set_xscale("symlog", linthresh=100)
    over_examples.xaxis.set_major_formatter("{x:.0f}")
    for axis in (over_tasks, over_examples):
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", frameon=False)
    return figure


def _by_examples(done, name):
    """Shares of the fine-tuned accuracy, by how many examples were used."""
    if name == "superposed":
        name += f", {done['config']['families'][-1]}"
    tuned = _mean(done, "fine-tuned networks")
    return {
        system["examples"]: 100 * _mean(done, each) / tuned
        for each, system in done["systems"].items()
        if re.fullmatch(rf"{name}(, \d+ examples)?", each)
    }


if __name__ == "__main__":
    main()
