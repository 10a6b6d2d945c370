"""K fine-tuned networks in one, and what else one might do with them.

    TFDS_DATA_DIR=... python tools/merge.py --output merge.json
    python tools/merge.py --output merge.json --markdown    # the table of what is there

A network learns upright digits; each of K networks goes on from there with the digits
turned by another angle, of half a circle. Then all are kept in one network. Rivals: the
mean of the weights; task arithmetic (Ilharco et al., 2023), the base and the sum of all
differences times the factor that does best on the examples; one bit for every
difference, with each layer's mean size (Liu et al., 2024); and RegMean (Jin et al.,
2023), which is the fit without contexts. A measurement takes the place of the same one
in the JSON and leaves the others there.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import keras
import numpy as np

import keras_psp
from keras_psp import datasets

BATCH_SIZE = 128


def main():
    """Trains, keeps all in one, tests, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--tuning-epochs", type=int, default=1)
    parser.add_argument("--examples", type=int, default=2000, help="of each task")
    families = ["binary", "fast_rotation"]
    parser.add_argument("--families", nargs="+", default=families)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="measure nothing")
    args = parser.parse_args()
    content = json.loads(args.output.read_text()) if args.output.exists() else []
    if not args.markdown:
        done = _measure(args)
        content = [each for each in content if each["config"] != done["config"]]
        content.append(done)
        args.output.write_text(json.dumps(content, indent=1))
    print("\n\n".join(map(_markdown, content)))


def _measure(args):
    keras.utils.set_random_seed(args.seed)
    tasks = datasets.rotating(args.source, period=2 * args.tasks, context_every=1)
    base = _network(tasks, args.units)
    base.compile("adam", _loss())
    base.fit(_plain(tasks.train(0, BATCH_SIZE)), epochs=args.epochs, verbose=0)
    models = []
    for k in range(args.tasks):
        model = keras.models.clone_model(base)
        model.set_weights(base.get_weights())
        model.compile(keras.optimizers.Adam(2e-4), _loss())
        data = _plain(tasks.train(k, BATCH_SIZE))
        model.fit(data, epochs=args.tuning_epochs, verbose=0)
        models.append(model)
    # The last ones: the first may be what a network remembers best.
    data = [
        np.concatenate([x["image"] for x, _ in tasks.train(k, BATCH_SIZE)])
        for k in range(args.tasks)
    ]
    data = [images[-args.examples :] for images in data]

    systems = {}

    def add(name, accuracies, numbers):
        systems[name] = {"accuracies": accuracies, "numbers": numbers}
        print(f"{name}: {100 * np.mean(accuracies):.2f} %", flush=True)

    def test_each(networks):
        return [_test(model, tasks, k) for k, model in enumerate(networks)]

    size = base.count_params()
    add("fine-tuned networks", test_each(models), args.tasks * size)
    add("the base alone", test_each([base] * args.tasks), size)
    weights = [model.get_weights() for model in models]
    of_base = base.get_weights()
    sums = [
        sum(each) - len(each) * start
        for each, start in zip(zip(*weights, strict=True), of_base, strict=True)
    ]

    def add_to_base(factor):
        added = [w + factor * d for w, d in zip(of_base, sums, strict=True)]
        return _with_weights(base, added)

    mean = add_to_base(1 / args.tasks)
    add("mean of the weights", test_each([mean] * args.tasks), size)
    best = max(
        map(add_to_base, np.arange(1, 11) / 10),
        key=lambda model: np.mean(
            [_agree(model, models[k], data[k]) for k in range(args.tasks)]
        ),
    )
    add("task arithmetic", test_each([best] * args.tasks), size)
    bits = []
    for each in weights:
        steps = [w - start for w, start in zip(each, of_base, strict=True)]
        signs = [np.sign(step) * np.abs(step).mean() for step in steps]
        bits.append(
            _with_weights(base, [w + s for w, s in zip(of_base, signs, strict=True)])
        )
    add("one bit a difference", test_each(bits), size * (1 + args.tasks / 32))

    mean = keras_psp.superpose(models, "identity", data=data)
    add("RegMean", test_each([mean] * args.tasks), _count(mean))
    for family in args.families:
        for fitted in (False, True):
            given = data if fitted else None
            one = keras_psp.superpose(models, family, base=base, data=given)
            name = f"superposed, {family}{', fitted' if fitted else ''}"
            add(name, test_each([one] * args.tasks), _count(one))
    return {
        "config": {
            key: value
            for key, value in vars(args).items()
            if key not in ("output", "markdown")
        },
        "backend": keras.backend.backend(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras-psp", "keras", "numpy", keras.backend.backend())
        },
        "device": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "systems": systems,
    }


def _network(tasks, units):
    image = keras.Input(tasks.image_shape, name="image")
    x = keras.layers.Flatten()(image)
    for _ in range(2):
        x = keras.layers.Dense(units, activation="relu")(x)
    return keras.Model({"image": image}, keras.layers.Dense(tasks.num_classes)(x))


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _plain(dataset):
    return dataset.map(lambda inputs, label: ({"image": inputs["image"]}, label))


def _with_weights(base, weights):
    model = keras.models.clone_model(base)
    model.set_weights(weights)
    return model


def _test(model, tasks, task):
    data = tasks.test(task, 1000)
    if "task" not in model.input:
        data = _plain(data)
    model.compile(loss=_loss(), metrics=["accuracy"])
    return float(model.evaluate(data, verbose=0)[1])


def _agree(model, other, images):
    """How often two networks give one answer, which needs no labels."""
    answers = [
        each.predict({"image": images}, verbose=0).argmax(-1) for each in (model, other)
    ]
    return np.mean(answers[0] == answers[1])


def _count(model):
    """How many numbers of four bytes a model keeps."""
    return (
        sum(
            np.array(keras.ops.convert_to_numpy(weight)).nbytes
            for weight in model.weights
        )
        / 4
    )


def _markdown(content):
    config, systems = content["config"], content["systems"]
    tuned = np.mean(systems["fine-tuned networks"]["accuracies"])
    size = systems["the base alone"]["numbers"]
    lines = [
        f"{config['tasks']} tasks, {config['units']} units, {config['examples']} "
        f"examples of each task, {config['source']}, on {content['backend']}:",
        "",
        "| | accuracy % | of the fine-tuned % | networks' memory |",
        "|---|---|---|---|",
    ]
    for name, system in systems.items():
        accuracy = np.mean(system["accuracies"])
        lines.append(
            f"| {name} | {100 * accuracy:.1f} | {100 * accuracy / tuned:.1f} "
            f"| {system['numbers'] / size:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
