"""A run: config -> `model.fit` over the stream of tasks -> result."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import time

import keras
import numpy as np

from keras_psp.benchmarks.accuracy_matrix import AccuracyMatrix
from keras_psp.benchmarks.files import claim_folder
from keras_psp.benchmarks.fresh_start import FreshStart
from keras_psp.benchmarks.result import RunResult


def run(config, output=None, overwrite=False, callbacks=(), tensorboard=False):
    """Runs one experiment.

    The model is trained by one `fit()` over the stream of tasks, an epoch a task, and
    evaluated on all tasks seen so far at the end of each. The process's random seeds
    are set to the config's: on a CPU, equal configs give equal matrices.

    Args:
        config: A config, one of the values of `keras_psp.benchmarks.EXPERIMENTS`.
        output: Folder for `result.json`, or `None` to write nothing.
        overwrite: Boolean, whether the folder may hold files already.
        callbacks: More Keras callbacks for the `fit()`.
        tensorboard: Boolean, whether to write logs for TensorBoard beside the result.

    Returns:
        A `RunResult`.

    Raises:
        FileExistsError: The folder holds files and `overwrite` is `False`.
        OSError: The folder cannot be written.
        ValueError: The config asks for what the source does not have; `tensorboard`
            without `output`.

    Example:

    >>> from keras_psp import benchmarks
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20, units=32)
    >>> result = benchmarks.run(config)
    >>> result.accuracy_matrix.shape
    (2, 2)
    """
    if tensorboard and output is None:
        raise ValueError("`tensorboard` needs an `output` folder to write to.")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "TensorBoard is not installed. Install it with: pip install tensorboard"
        )
    if output is not None:
        output = claim_folder(output, overwrite)
    start = time.perf_counter()
    keras.utils.set_random_seed(config.seed)
    tasks = config.build_tasks()
    stream = tasks.stream(config.steps, config.batch_size)
    model = config.build_model(tasks)
    model.compile(
        optimizer=config.build_optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=_steps_per_execution(config.steps),
    )
    matrix = AccuracyMatrix(tasks, separate=config.separate)
    callbacks = [matrix, *callbacks]
    if config.separate:
        callbacks.append(FreshStart())
    if tensorboard:
        log_dir = str(output / "tensorboard")
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False))
    model.fit(
        stream,
        epochs=config.tasks,
        steps_per_epoch=config.steps,
        callbacks=callbacks,
        shuffle=False,  # The stream is shuffled.
        verbose=0,
    )
    result = RunResult(
        experiment=config.experiment,
        config=dataclasses.asdict(config),
        seed=config.seed,
        versions=_versions(),
        backend=keras.backend.backend(),
        device=_device(model),
        jit_compile=bool(model.jit_compile),
        contexts=_contexts(model),
        examples=tasks.examples,
        timings={
            "train_seconds": matrix.train_seconds,
            "test_seconds": matrix.test_seconds,
            "total_seconds": time.perf_counter() - start,
        },
        matrix=[
            [None if np.isnan(accuracy) else float(accuracy) for accuracy in row]
            for row in matrix.matrix
        ],
    )
    if output is not None:
        result.save(output)
    return result


def _steps_per_execution(steps):
    # An execution pays once for Keras' callbacks. It must not cross a task's end.
    at_most = 1 if keras.backend.backend() == "torch" else 10  # As Keras demands.
    return max(n for n in range(1, at_most + 1) if steps % n == 0)


def _contexts(model):
    layers = [layer for layer in model.layers if hasattr(layer, "context")]
    contexts = [layer.context for layer in layers]
    drifts = [
        float(context.orthogonality_drift().max())
        for context in contexts
        if context.learnable  # What is not trained does not drift.
    ]
    return {
        "bits_per_task": sum(context.bits_per_task for context in contexts),
        "numbers_per_task": sum(context.numbers_per_task for context in contexts),
        "orthogonality_drift": max(drifts, default=None),
    }


def _versions():
    packages = ("keras", "numpy", "tensorflow", "jax", "torch", "tensorflow-datasets")
    versions = {"python": platform.python_version()}
    for package in ("keras-psp", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # The other backends need not be installed.
    return versions


def _device(model):
    kernel = model.trainable_variables[0].value
    return {
        "platform": platform.platform(),
        "name": str(kernel.device),  # Of every backend's tensors.
        "cpus": os.cpu_count(),
    }
