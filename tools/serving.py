"""One superposed model for 20 tasks against 20 models, each served as SavedModels.

    python tools/serving.py --output serving.json --folder models --export  # first
    python tools/serving.py --output serving.json --folder models           # measure
    python tools/serving.py --output serving.json --markdown                # the table

`--export` writes the superposed model with `keras_psp.export`, and each of its tasks,
`keras_psp.extract`ed, with Keras' own `export`. Measured are two fresh processes that
have TensorFlow alone, one with the superposed model and one with all 20 others: how
much their resident memory has grown since before loading, by weights, graphs and
whatever TensorFlow holds for them; how long they loaded; and requests a second, each
request an example of a random task, alone or in batches of 32. The 20 models answer a
batch each with its share. In every round both are timed on the same requests, the
first of them in turns; a ratio is the median over the rounds. The machine must do
nothing else.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SEED = 0
BATCH_SIZES = (1, 32)
MODELS = {
    "MLP 784-1024-1024-10": ("mlp", (28, 28, 1), {"units": 1024, "depth": 2}),
    "ResNet18, width 0.25": ("resnet18", (32, 32, 3), {"width": 0.25}),
    "ResNet18, width 0.25, channels": (
        "resnet18",
        (32, 32, 3),
        {"width": 0.25, "context_over": "channels"},
    ),
}


def main():
    """Exports or measures, each system in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=320, help="in a round")
    parser.add_argument("--export", action="store_true", help="measure nothing")
    parser.add_argument("--markdown", action="store_true", help="measure nothing")
    parser.add_argument("--part", choices=("export", "serve"), help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "export":
        for name in args.models:
            _export(name, args.folder, args.tasks)
    elif args.part == "serve":
        _serve(args.paths)
    elif args.export:
        subprocess.run([*_command(), *sys.argv[1:], "--part", "export"], check=True)
    else:
        content = json.loads(args.output.read_text()) if args.output.exists() else {}
        for name in [] if args.markdown else args.models:
            print(f"{name} ...", file=sys.stderr)
            content[name] = _measure(name, args)
            args.output.write_text(json.dumps(content, indent=1))
        print(_markdown(content))


def _command():
    os.environ.update(
        KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES=""
    )
    return [sys.executable, __file__]


def _paths(name, folder, num_tasks):
    """Returns the paths of the superposed model and of the others, by system."""
    folder = folder / name.replace(" ", "_").replace(",", "")
    many = [folder / f"task_{task}" for task in range(num_tasks)]
    return {"one": [folder / "superposed"], "many": many}


def _export(name, folder, num_tasks):
    import keras

    import keras_psp

    paths = _paths(name, folder, num_tasks)
    paths["one"][0].parent.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(SEED)
    builder, shape, options = MODELS[name]
    model = getattr(keras_psp.models, builder)(
        shape, num_classes=10, num_tasks=num_tasks, **options
    )
    rng = np.random.default_rng(SEED)
    for weight in model.weights:  # Statistics that differ from task to task.
        if "moving_variance" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
        elif "moving_mean" in weight.name:
            weight.assign(rng.normal(scale=0.1, size=weight.shape))
    keras_psp.export(model, paths["one"][0], infer_task=False, overwrite=True)
    for task, path in enumerate(paths["many"]):
        plain = keras_psp.extract(model, task)
        plain.export(path, format="tf_saved_model", verbose=False)


class _System:
    """A process that serves; `ask()` waits for its answer."""

    def __init__(self, paths):
        self._process = subprocess.Popen(
            [*_command(), "--output", "-", "--part", "serve", "--paths", *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = json.loads(self._process.stdout.readline())

    def ask(self, **order):
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        if self._process.wait():
            raise RuntimeError("A process that serves has failed")


def _measure(name, args):
    paths = _paths(name, args.folder, args.tasks)
    shape = MODELS[name][1]
    systems = {key: _System(value) for key, value in paths.items()}
    found = {key: system.loaded for key, system in systems.items()}
    check = {"shape": shape, "num_tasks": args.tasks, "batch_size": 64, "batches": 1}
    one, many = (
        np.array(s.ask(**check, seed=SEED, answers=True)) for s in systems.values()
    )
    difference = float(abs(one - many).max() / max(1, abs(many).max()))
    if not difference < 1e-4:
        raise ValueError(f"{name}: the answers differ by {difference}")
    times = {}
    for batch_size in BATCH_SIZES:
        batches = max(1, args.requests // batch_size)
        order = {**check, "batch_size": batch_size, "batches": batches}
        rounds = {key: [] for key in systems}
        for i in range(args.rounds + 2):
            for key in list(systems)[:: 1 if i % 2 else -1]:
                seconds = systems[key].ask(**order, seed=i)
                if i >= 2:  # Two rounds warm up.
                    rounds[key].append(batches * batch_size / seconds)
        times[batch_size] = rounds
    for key, system in systems.items():
        found[key]["rss_after_serving"] = system.ask(rss=True)
        found[key]["disk"] = _disk(paths[key])
        system.close()
    packages = ("keras-psp", "keras", "numpy", "tensorflow")
    return {
        "what": "rss in bytes, disk in bytes (weights, and all), load in seconds, "
        "requests a second in each round",
        "settings": {
            "tasks": args.tasks,
            "rounds": args.rounds,
            "requests": args.requests,
            "model": MODELS[name],
        },
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "backend": "tensorflow",
        "device": {
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "gpu": None,
        },
        "difference": difference,
        "systems": found,
        "requests_per_second": times,
    }


def _disk(paths):
    files = [file for path in paths for file in path.rglob("*") if file.is_file()]
    weights = [file for file in files if file.parent.name == "variables"]
    return [sum(file.stat().st_size for file in some) for some in (weights, files)]


def _serve(paths):
    """Loads models, says so, and answers one order after the other."""
    import tensorflow as tf

    tf.function(tf.matmul)(tf.ones((64, 64)), tf.ones((64, 64)))
    before, start = _rss(), time.perf_counter()
    loaded = [tf.saved_model.load(str(path)) for path in paths]
    calls = [model.signatures["serve"] for model in loaded]
    seconds = time.perf_counter() - start
    found = {"load": seconds, "rss_before": before, "rss_loaded": _rss()}
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        result = _rss() if order.get("rss") else _answer(calls, **order)
        print(json.dumps(result), flush=True)


def _answer(calls, shape, num_tasks, batch_size, batches, seed, answers=False):
    """Returns how long batches took, or the answers to the last."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batches, batch_size, *shape)).astype("float32")
    tasks = rng.integers(num_tasks, size=(batches, batch_size)).astype("int32")
    start = time.perf_counter()
    for image, task in zip(images, tasks, strict=True):
        if len(calls) == 1:
            inputs = {"image": tf.constant(image), "task": tf.constant(task)}
            (output,) = calls[0](**inputs).values()
            output = output.numpy()
        else:
            output = np.empty((batch_size, 10), "float32")
            for k in np.unique(task):
                (share,) = calls[k](image=tf.constant(image[task == k])).values()
                output[task == k] = share.numpy()
    seconds = time.perf_counter() - start
    return output.tolist() if answers else seconds


def _rss():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _markdown(content):
    """One row for each measure of each model."""
    lines = ["| | | models | superposed | ratio |", "|---|---|---|---|---|"]
    for name, found in content.items():
        one, many = found["systems"]["one"], found["systems"]["many"]
        rows = {
            "memory after loading, MB": [
                (s["rss_loaded"] - s["rss_before"]) / 1e6 for s in (many, one)
            ],
            "and after serving, MB": [
                (s["rss_after_serving"] - s["rss_before"]) / 1e6 for s in (many, one)
            ],
            "weights, MB": [s["disk"][0] / 1e6 for s in (many, one)],
            "load, s": [s["load"] for s in (many, one)],
        }
        ratios = {key: one / many for key, (many, one) in rows.items()}
        for batch_size, times in found["requests_per_second"].items():
            key = f"requests a second, batch {batch_size}"
            pairs = list(zip(times["many"], times["one"], strict=True))
            rows[key] = [
                statistics.median(values) for values in (times["many"], times["one"])
            ]
            ratios[key] = statistics.median(one / many for many, one in pairs)
        shown = name
        for key, (many, one) in rows.items():
            digits = 0 if max(many, one) >= 100 else 1
            values = f"{many:.{digits}f} | {one:.{digits}f} | {ratios[key]:.2f}"
            lines.append(f"| {shown} | {key} | {values} |")
            shown = ""
    return "\n".join(lines)


if __name__ == "__main__":
    main()
