"""A run: config -> `model.fit` over the stream of tasks -> result."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from pathlib import Path

import keras

from keras_psp._core.files import claim_folder
from keras_psp.benchmarks._checkpoint import Checkpoint
from keras_psp.benchmarks._checkpoint import check_same_run
from keras_psp.benchmarks._checkpoint import describe
from keras_psp.benchmarks._checkpoint import has_checkpoint
from keras_psp.benchmarks.fresh_start import FreshStart
from keras_psp.benchmarks.result import FILE_NAME
from keras_psp.benchmarks.result import RunResult
from keras_psp.consolidation.end_task import EndTask
from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix


def run(
    config,
    output=None,
    overwrite=False,
    resume=False,
    callbacks=(),
    tensorboard=False,
):
    """Runs one experiment.

    The model is trained by one `fit()` over the stream of tasks, an epoch a visit to a
    task, and evaluated on all tasks seen so far at the end of each. The process's
    random seeds are set to the config's: on a CPU, equal configs give equal matrices.

    With an `output` folder the run can be killed at any moment and resumed from the
    last task that it has finished, with the same matrix as if it had not been.

    Args:
        config: A config, one of the values of `keras_psp.benchmarks.EXPERIMENTS`.
        output: Folder for `result.json`, or `None` to write nothing.
        overwrite: Boolean, whether the folder may hold files already.
        resume: Boolean, whether to go on with the run that is in the folder, if one is;
            if it has its result, that is all.
        callbacks: More Keras callbacks for the `fit()`.
        tensorboard: Boolean, whether to write logs for TensorBoard beside the result.

    Returns:
        A `RunResult`.

    Raises:
        FileExistsError: The folder holds files, but no run, or `overwrite` and `resume`
            are `False`.
        OSError: The folder cannot be written.
        ValueError: The config asks for what the source does not have; `tensorboard` or
            `resume` without `output`; the run in the folder has another config, or is
            damaged.

    Example:

    >>> from keras_psp import benchmarks
    >>> config = benchmarks.PermutedConfig(tasks=2, steps=20, units=32)
    >>> result = benchmarks.run(config)
    >>> result.accuracy_matrix.shape
    (2, 2)
    """
    for name, wanted in (("tensorboard", tensorboard), ("resume", resume)):
        if wanted and output is None:
            raise ValueError(f"`{name}` needs an `output` folder.")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "TensorBoard is not installed. Install it with: pip install tensorboard"
        )
    if resume:
        result = find_result(config, output)
        if result is not None:
            return result
    start, earlier = time.perf_counter(), 0.0
    keras.utils.set_random_seed(config.seed)
    tasks = config.build_tasks()
    matrix = AccuracyMatrix(tasks, separate=config.separate)
    callbacks = [matrix, *callbacks]
    if config.consolidation != "none":
        callbacks.insert(0, EndTask(tasks))
    if config.separate:
        callbacks.append(FreshStart())
    checkpoint = None
    if output is not None:
        going_on = resume and has_checkpoint(output)
        output = claim_folder(output, overwrite or going_on)
        checkpoint = Checkpoint(output, config, matrix, resume)
        callbacks.append(checkpoint)
        earlier = checkpoint.seconds
    first = checkpoint.visits if checkpoint else 0
    if tensorboard:
        log_dir = str(output / "tensorboard")
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False))
    stream = tasks.stream(config.steps, config.batch_size, first, config.joint)
    model = config.build_model(tasks)
    model.compile(
        optimizer=config.build_optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=_steps_per_execution(config.steps),
    )
    model.fit(
        stream,
        initial_epoch=first,
        epochs=tasks.num_visits,
        steps_per_epoch=config.steps,
        callbacks=callbacks,
        shuffle=False,  # The stream is shuffled.
        verbose=0,
    )
    state = matrix.state()
    result = RunResult(
        **describe(config),
        seed=config.seed,
        versions=_versions(),
        device=_device(model),
        jit_compile=bool(model.jit_compile),
        contexts=_contexts(model),
        memory=_memory(model, config),
        examples=tasks.examples,
        timings={
            "train_seconds": state["train_seconds"],
            "test_seconds": state["test_seconds"],
            "total_seconds": earlier + time.perf_counter() - start,
        },
        matrix=state["matrix"],
        ahead=state["ahead"],
    )
    if output is not None:
        result.save(output)
        checkpoint.remove()
    return result


def find_result(config, output):
    """Returns the `RunResult` of this very run, or `None` if it has not ended.

    Raises:
        ValueError: The folder's result is of another run, or damaged.
    """
    if has_checkpoint(output) or not (Path(output) / FILE_NAME).exists():
        return None
    result = RunResult.load(output)
    check_same_run(Path(output) / FILE_NAME, vars(result), describe(config))
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


def _memory(model, config):
    def count(variables):
        return sum(keras.ops.convert_to_numpy(v).nbytes for v in variables)

    optimizer, kept = model.optimizer, []
    if config.consolidation != "none":
        kept = optimizer.variables[: -len(optimizer.optimizer.variables)]
    return {
        "weights": count(model.weights) * (config.tasks if config.separate else 1),
        "consolidation": count(kept),
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
