"""How near `model.fit` comes to the least that the same training can cost.

The floor is one `jax.lax.scan` over a task's steps: the same network, optimizer and
data, gathered and permuted on the device, without Keras, tf.data, callbacks or metrics.
It and `keras-psp`'s own run on each backend are timed in turn, each in a process of its
own on one core, a number of rounds; the JSON has every time and the ratios of medians.

    TFDS_DATA_DIR=... python tools/floor.py --output floor.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
TASKS, STEPS = 4, 500


def main():
    """Times the floor and the backends in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", choices=("floor", "pipeline", *BACKENDS))
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_time(args.part)))
        return
    parts = ("floor", "pipeline", *BACKENDS)
    times, versions = {part: [] for part in parts}, {}
    for _ in range(args.rounds):
        for part in parts:
            done = _measure(part, args.output)
            times[part].append(done["ms_per_step"])
            versions.update(done["versions"])
    medians = {part: statistics.median(times[part]) for part in parts}
    images = {part: 128_000 / medians[part] for part in parts}
    content = {
        "what": f"permuted MNIST, 3x256, batch 128, {STEPS} steps a task, one core",
        "seed": 0,
        "device": f"{platform.processor() or platform.machine()} CPU, one core",
        "versions": versions,
        "ms_per_step": times,
        "median_ms_per_step": medians,
        "fit_to_floor": {part: medians[part] / medians["floor"] for part in BACKENDS},
        "images_per_second": images,
        "pipeline_to_fit": {
            part: images["pipeline"] / images[part] for part in BACKENDS
        },
    }
    print(json.dumps(content, indent=1))
    args.output.write_text(json.dumps(content, indent=1))


def _measure(part, output):
    backend = part if part in BACKENDS else "jax"
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--part", part, "--output", str(output)]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def _time(part):
    from keras_psp.benchmarks import PermutedConfig
    from keras_psp.benchmarks import run

    config = PermutedConfig(source="mnist", tasks=TASKS, steps=STEPS)
    if part in BACKENDS:
        result = run(config)
        seconds, versions = result.timings["train_seconds"], result.versions
    else:
        seconds = (_floor if part == "floor" else _pipeline)(config)
        versions = {}
    # The first task compiles.
    return {
        "ms_per_step": 1000 * statistics.median(seconds[1:]) / STEPS,
        "versions": versions,
    }


def _pipeline(config):
    """The stream of batches alone, as NumPy arrays."""
    tasks = config.build_tasks()
    batches = iter(tasks.stream(config.steps, config.batch_size).as_numpy_iterator())
    seconds = []
    for _ in range(config.tasks):
        start = time.perf_counter()
        for _ in range(config.steps):
            next(batches)
        seconds.append(time.perf_counter() - start)
    return seconds


def _floor(config):
    import jax
    import jax.numpy as jnp
    import numpy as np

    tasks = config.build_tasks()
    source = tasks.source
    images = jnp.asarray(source.x_train.reshape(-1, 784))
    labels = jnp.asarray(source.y_train)
    model = config.build_model(tasks)
    names = [f"dense_{i}" for i in range(config.depth)] + ["logits"]
    layers = [model.get_layer(name) for name in names]
    kernels = [jnp.asarray(np.asarray(layer.kernel)) for layer in layers]
    banks = [jnp.asarray(np.asarray(layer.context.contexts)) for layer in layers]
    velocities = [jnp.zeros_like(kernel) for kernel in kernels]
    optimizer = config.build_optimizer()
    rate, rho = config.learning_rate, optimizer.rho

    def loss(kernels, x, y, signs):
        for i, kernel in enumerate(kernels):
            x = (x * signs[i]) @ kernel
            x = jax.nn.relu(x) if i < config.depth else x
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1))

    @jax.jit
    def train(state, task, order, permutation):
        signs = [bank[task].astype("float32") for bank in banks]

        def step(state, indices):
            kernels, velocities = state
            x = images[indices][:, permutation].astype("float32")
            x = (x / 255 - source.mean) / source.std
            value, gradients = jax.value_and_grad(loss)(
                kernels, x, labels[indices], signs
            )
            velocities = [
                rho * v + (1 - rho) * g * g
                for v, g in zip(velocities, gradients, strict=True)
            ]
            kernels = [
                k - rate * g / jnp.sqrt(v + optimizer.epsilon)
                for k, g, v in zip(kernels, gradients, velocities, strict=True)
            ]
            return (kernels, velocities), value

        return jax.lax.scan(step, state, order)

    rng = np.random.default_rng(0)
    state, seconds = (kernels, velocities), []
    for task in range(config.tasks):
        order = rng.integers(len(images), size=(config.steps, config.batch_size))
        permutation = jnp.asarray(rng.permutation(784))
        start = time.perf_counter()
        state, losses = jax.block_until_ready(
            train(state, task, jnp.asarray(order), permutation)
        )
        seconds.append(time.perf_counter() - start)
        if not losses[-1] < losses[0]:
            raise RuntimeError("The floor did not learn.")
    return seconds


if __name__ == "__main__":
    main()
