"""Times `model.fit` beside the least that the same training can cost.

The floor is one `jax.lax.scan` over a task's steps: the same network, optimizer and
data, gathered and permuted on the device, without Keras, tf.data, callbacks or metrics.
The floor, the stream of batches alone (`pipeline`) and the run of `keras-psp` on each
backend are timed in turn, each in a process of its own on one core. MNIST is read from
`TFDS_DATA_DIR`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from _measure import results
from _measure import tables
from _measure.tables import BACKENDS

TASKS, STEPS = 4, 500
PARTS = ("floor", "pipeline", *BACKENDS)
Arrays = list[Any]
State = tuple[Any, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    results.add_output(parser)


def run(args: argparse.Namespace) -> None:
    """Times all parts in turn and prints a table; or times one part."""
    if args.part:
        print(json.dumps(_time(args.part)))
        return
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(args.rounds):
        for part in PARTS:
            times[part].append(_start(part))
    medians = {part: statistics.median(times[part]) for part in PARTS}
    rows = [
        {
            "part": part,
            "ms_per_step": times[part],
            "median_ms": medians[part],
            "ratio": medians[part] / medians["floor"],
        }
        for part in PARTS
    ]
    what = f"permuted MNIST, 3x256, batch 128, {STEPS} steps a task, one core"
    environment = results.describe_environment(*BACKENDS)
    result = results.save(args, "floor", what, rows, environment)
    tables.show(tables.draw_floor, result)


def _start(part: str) -> float:
    """Times a part in a process of its own, on one core."""
    backend = part if part in BACKENDS else "jax"
    done = subprocess.run(
        [sys.executable, sys.argv[0], "floor", "--part", part],
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def _time(part: str) -> float:
    """Returns milliseconds a step."""
    from keras_psp.benchmarks import PermutedConfig
    from keras_psp.benchmarks import run

    config = PermutedConfig(source="mnist", tasks=TASKS, steps=STEPS)
    if part in BACKENDS:
        seconds = run(config).timings["train_seconds"]
    else:
        learn = (_floor if part == "floor" else _pipeline)(config)
        seconds = [_seconds(learn) for _ in range(TASKS)]
    return 1000 * statistics.median(seconds[1:]) / STEPS  # The first task compiles.


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _pipeline(config: Any) -> Callable[[], None]:
    """Returns a function that draws a task's batches, as NumPy arrays."""
    stream = config.build_tasks().stream(STEPS, config.batch_size)
    batches = iter(stream.as_numpy_iterator())

    def learn() -> None:
        for _ in range(STEPS):
            next(batches)

    return learn


def _floor(config: Any) -> Callable[[], None]:
    """Returns a function that trains the next task in one `jax.lax.scan`."""
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
    optimizer = config.build_optimizer()
    rate, rho = config.learning_rate, optimizer.rho

    def loss(kernels: Arrays, x: Any, y: Any, signs: Arrays) -> Any:
        for i, kernel in enumerate(kernels):
            x = (x * signs[i]) @ kernel
            x = jax.nn.relu(x) if i < config.depth else x
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1))

    @jax.jit
    def train(state: State, task: Any, order: Any, permutation: Any) -> State:
        signs = [bank[task].astype("float32") for bank in banks]

        def step(state: State, indices: Any) -> State:
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
    drawn = [
        (
            task,
            jnp.asarray(rng.integers(len(images), size=(STEPS, config.batch_size))),
            jnp.asarray(rng.permutation(784)),
        )
        for task in range(TASKS)
    ]
    state = (kernels, [jnp.zeros_like(kernel) for kernel in kernels])

    def learn() -> None:
        nonlocal state
        state, losses = jax.block_until_ready(train(state, *drawn.pop(0)))
        if not losses[-1] < losses[0]:
            raise RuntimeError("The floor did not learn.")

    return learn
