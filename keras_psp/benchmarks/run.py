"""A run: config -> `model.fit` over the stream of tasks -> result."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import time
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_number
from keras_psp._core.files import check_empty
from keras_psp._core.files import lock_folder
from keras_psp._core.memory import count_bytes
from keras_psp.benchmarks._afterwards import measure_afterwards
from keras_psp.benchmarks._checkpoint import Checkpoint
from keras_psp.benchmarks._checkpoint import check_same_run
from keras_psp.benchmarks._checkpoint import describe
from keras_psp.benchmarks._checkpoint import has_checkpoint
from keras_psp.benchmarks._parts import TRAININGS
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.fresh_start import FreshStart
from keras_psp.benchmarks.result import FILE_NAME
from keras_psp.benchmarks.result import RunResult
from keras_psp.consolidation.end_task import EndTask
from keras_psp.consolidation.end_task import find_consolidation
from keras_psp.contexts import Context
from keras_psp.evaluation.accuracy_matrix import AccuracyMatrix


def run(
    config: Config,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    tensorboard: bool = False,
) -> RunResult:
    """Runs one experiment.

    One `fit()` trains the model over the stream of tasks; an epoch is a visit to a
    task. At the end of each epoch the model is evaluated on all tasks seen so far. If
    the optimizer, or one inside it, has a method `end_task()`, it is called too. The
    process's random seeds are set to the config's: on a CPU, equal configs give equal
    matrices.

    With an `output` folder the run can be killed at any moment and resumed from the
    last task that it has finished. The matrix is then the same as without the kill. A
    lock keeps a second run out of the folder while the first one is alive.

    Args:
        config: A config, one of the values of `keras_psp.benchmarks.EXPERIMENTS` or a
            subclass of your own.
        output: Folder for `result.json`, or `None` to write nothing.
        overwrite: Boolean, whether the folder may hold files already.
        resume: Boolean, whether to continue the run in the folder, if there is one. If
            that run has its result, the result is returned as it is.
        callbacks: More Keras callbacks for the `fit()`.
        tensorboard: Boolean, whether to write logs for TensorBoard beside the result.

    Returns:
        A `RunResult`.

    Raises:
        FileExistsError: Another run uses the folder; or the folder holds files, but no
            run, or `overwrite` and `resume` are `False`.
        OSError: The folder cannot be written. What it holds can be resumed.
        TypeError: `config` is no `Config`.
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
    if not isinstance(config, Config):
        raise TypeError(
            "`config` must be a `keras_psp.benchmarks.Config`, such as "
            "`PermutedConfig()`. "
            f"Received: config={config!r} (of type {type(config).__name__})"
        )
    for name, wanted in (("tensorboard", tensorboard), ("resume", resume)):
        if wanted and output is None:
            raise ValueError(f"`{name}` needs an `output` folder.")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "TensorBoard is not installed. Install it with: pip install tensorboard"
        )
    callbacks = list(callbacks)
    if output is None:
        return _run(config, callbacks)
    if resume:
        result = find_result(config, output)
        if result is not None:
            return result  # Without a lock: the folder may be read-only.
    with lock_folder(output) as folder:
        if resume:
            result = find_result(config, folder)
            if result is not None:
                return result  # Another process has ended meanwhile.
        check_empty(
            folder,
            overwrite or (resume and has_checkpoint(folder)),
            way_out="continue the run in it with --resume, or overwrite it with "
            "--overwrite",
        )
        if tensorboard:
            log_dir = str(folder / "tensorboard")
            callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False))
        return _run(config, callbacks, folder, resume)


def find_result(config: Config, output: str | os.PathLike) -> RunResult | None:
    """Returns the `RunResult` of this very run, or `None` if it has not ended.

    Raises:
        ValueError: The folder's result is of another run, or damaged.
    """
    path = Path(output) / FILE_NAME
    if has_checkpoint(output) or not path.exists():
        return None
    result = RunResult.load(output)
    fields = dataclasses.fields(config)
    check_same_run(path, vars(result), describe(config), fields)
    return result


def _run(
    config: Config,
    callbacks: list[keras.callbacks.Callback],
    folder: Path | None = None,
    resume: bool = False,
) -> RunResult:
    """Runs a config, and saves its result if there is a folder, which is locked."""
    start = time.perf_counter()
    keras.utils.set_random_seed(config.seed)
    tasks = config.build_tasks()
    examples = tasks.examples
    for task, counts in enumerate(examples["test"]):
        if not sum(counts):
            raise ValueError(
                f"Every task must have test examples. Received: none for task {task}"
            )
    matrix = AccuracyMatrix(tasks, separate=config.separate)
    checkpoint = None
    first, earlier = 0, 0.0
    if folder is not None:
        checkpoint = Checkpoint(folder, config, matrix, resume)
        first, earlier = checkpoint.visits, checkpoint.seconds
    stream = tasks.stream(config.steps, config.batch_size, first, config.joint)
    model = config.build_model(tasks)
    model.compile(
        optimizer=config.build_optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=_steps_per_execution(config.steps),
    )
    # TensorBoard is to log the average accuracy, and a checkpoint to hold what your own
    # callbacks leave behind.
    callbacks = [matrix, *callbacks]
    if find_consolidation(model.optimizer) is not None:
        callbacks.insert(0, EndTask(tasks))
    if config.separate:
        callbacks.append(FreshStart())
    if checkpoint is not None:
        callbacks.append(checkpoint)
    TRAININGS[config.training](
        model,
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
        versions=versions(),
        device=_device(model),
        jit_compile=bool(model.jit_compile),
        contexts=_contexts(model),
        memory=_memory(model, config),
        examples=examples,
        timings={
            "train_seconds": state["train_seconds"],
            "test_seconds": state["test_seconds"],
            "total_seconds": earlier + time.perf_counter() - start,
        },
        matrix=state["matrix"],
        ahead=state["ahead"],
        afterwards=_read(
            "figures after the last task",
            lambda: measure_afterwards(config, model, tasks),
        )
        or {},
    )
    if checkpoint is not None:
        result.save(checkpoint.folder)
        checkpoint.remove()
    return result


def _steps_per_execution(steps: int) -> int:
    # An execution pays once for Keras' callbacks, which cost more than the step of a
    # small network. It must not cross a task's end.
    at_most = 1 if keras.backend.backend() == "torch" else 50  # As Keras demands.
    return max(n for n in range(1, at_most + 1) if steps % n == 0)


def _contexts(model: keras.Model) -> dict[str, Any]:
    layers = [layer for layer in model.layers if hasattr(layer, "context")]
    found = [x for x in (layer.context for layer in layers) if isinstance(x, Context)]

    def total(what):
        return sum(int(getattr(context, what)) for context in found)

    def largest_drift():
        # What is not trained does not drift.
        drifts = [x.orthogonality_drift() for x in found if x.learnable]
        if not drifts:
            return None
        return check_number("drift", float(np.max(np.concatenate(drifts))))

    return {
        "bits_per_task": _read("bits per task", lambda: total("bits_per_task")),
        "numbers_per_task": _read(
            "numbers per task", lambda: total("numbers_per_task")
        ),
        "orthogonality_drift": _read("drift", largest_drift),
    }


def _memory(model: keras.Model, config: Config) -> dict[str, Any]:
    def consolidation():
        outer = find_consolidation(model.optimizer)
        if outer is None:
            return 0
        inner = {id(v) for v in outer.optimizer.variables}
        return count_bytes(v for v in outer.variables if id(v) not in inner)

    networks = config.tasks if config.separate else 1
    return {
        "weights": _read("size", lambda: count_bytes(model.weights) * networks),
        "consolidation": _read("size of the consolidation", consolidation),
    }


def _read(what: str, read: Callable[[], Any]) -> Any:
    """Returns what `read()` does; `None`, with a warning, if it cannot be read.

    The network is trained: a model of one's own that cannot be described must not cost
    its accuracies.
    """
    try:
        return read()
    except Exception as error:
        warnings.warn(
            f"The result has no {what}: it cannot be read of this model ({error!r}).",
            stacklevel=4,
        )
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a run depends on."""
    packages = ("keras", "numpy", "tensorflow", "jax", "torch", "tensorflow-datasets")
    found = {"python": platform.python_version()}
    for package in ("keras-psp", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # The other backends need not be installed.
    return found


def _device(model: keras.Model) -> dict[str, Any]:
    def name():
        return str(model.trainable_variables[0].value.device)  # On every backend.

    return {
        "platform": platform.platform(),
        "name": _read("device", name) or "unknown",
        "cpus": os.cpu_count(),
    }
