"""How often `infer_task` finds the task of test images, by each of its methods.

    TFDS_DATA_DIR=... python tools/infer.py --output infer.json

A network learns permuted images task after task, as `keras-psp run permuted` lets it;
then it is shown images of each task without the task's number, one by one and in
batches of one task each.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np

from keras_psp import infer_task
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import run

METHODS = ("entropy", "energy", "gradient")


def main():
    """Trains, asks for the tasks, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--source", default="mnist")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--context", default="binary")
    parser.add_argument("--seed", type=int, default=0)
    images = {"type": int, "default": 1024, "help": "of each task, to be told"}
    parser.add_argument("--images", **images)
    parser.add_argument("--batch-size", type=int, default=32)
    args = vars(parser.parse_args())
    output, number, size = (args.pop(k) for k in ("output", "images", "batch_size"))
    config = PermutedConfig(**args)
    trained = keras.callbacks.Callback()  # Which is told the model.
    result = run(config, callbacks=[trained])
    images = _draw_images(config.build_tasks(), number, config.seed)
    found = {}
    for method in METHODS:
        shares = {
            "example": _share_found(trained.model, images, method, "example", number),
            "batch": _share_found(trained.model, images, method, "batch", size),
        }
        found[method] = shares
        example, batch = (f"{100 * share:.1f} %" for share in shares.values())
        print(f"{method}: {example} of images, {batch} of batches of {size}")
    content = {
        "config": result.config,
        "seed": result.seed,
        "versions": result.versions,
        "backend": result.backend,
        "device": result.device,
        "average_accuracy": result.average_accuracy,
        "images": number,
        "batch_size": size,
        "found": found,
    }
    output.write_text(json.dumps(content, indent=1))


def _draw_images(tasks, number, seed):
    """Returns as many test images of each task, a list of arrays."""
    drawn = []
    for task in range(tasks.num_tasks):
        batches = [inputs["image"] for inputs, _ in tasks.test(task, 1000)]
        images = np.concatenate(batches)
        rng = np.random.default_rng((seed, task))
        drawn.append(images[rng.choice(len(images), number, replace=False)])
    return drawn


def _share_found(model, images, method, per, size):
    """How many of the answers are right, of what is shown in parts of a size."""
    right = [
        np.mean(infer_task(model, each[start : start + size], method, per)[0] == task)
        for task, each in enumerate(images)
        for start in range(0, len(each) - size + 1, size)
    ]
    return float(np.mean(right))


if __name__ == "__main__":
    main()
