"""Many runs at a time, on the machines of a Ray cluster."""

import collections
import importlib.util
import os
import pickle
import socket
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_psp._core.checks import check_integer
from keras_psp.benchmarks._parts import add_missing_parts
from keras_psp.benchmarks._parts import added_parts
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.register import loaded_files
from keras_psp.benchmarks.result import RunResult
from keras_psp.benchmarks.run import find_result
from keras_psp.benchmarks.run import run
from keras_psp.benchmarks.run import versions

# How often a run is started again whose worker has died, and how many seconds a cluster
# has to answer.
RESTARTS = 3
PATIENCE = 10.0


def run_suite(
    configs: Iterable[Config],
    output: str | os.PathLike,
    workers: int = 1,
    address: str | None = None,
) -> Iterator[tuple[Config, RunResult]]:
    """Runs experiments on Ray, several at a time, each in a folder of its own.

    A run whose worker dies, or is out of memory, is started again, on another machine
    if there is one, three times at most. It continues after its last finished task.
    Runs that have their result are not run again, so an interrupted suite continues
    where it was. Parts of your own, registered or given as objects, are sent along.

    Args:
        configs: The configs, such as one of `keras_psp.benchmarks.SUITES`.
        output: Folder for the runs, on a file system that all machines share. Each run
            writes to the folder in it that is named after its config.
        workers: Positive integer, how many runs there are at a time. Each has one CPU.
        address: Address of a cluster, `"host:port"`; or `None` to start Ray on this
            machine, for this call.

    Yields:
        Pairs of a config and its `RunResult`, in the order in which the runs end.

    Raises:
        ConnectionError: Nothing answers at the `address` within ten seconds.
        ModuleNotFoundError: Ray is not installed.
        ChildProcessError: Runs failed; the message names each and says why. The others
            have ended, and are saved.
        TypeError, ValueError: `workers` is not a positive integer.

    Example:

    >>> from keras_psp import benchmarks
    >>> configs = benchmarks.SUITES["paper-small"]
    >>> runs = benchmarks.run_suite(configs, "runs/paper-small", workers=8)
    """
    check_integer("workers", workers)
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "Ray is not installed. Install it with: pip install 'keras-psp[ray]'"
        )
    if address is not None:
        _check_answers(address)
    each = [*dict.fromkeys(configs)]  # Two runs cannot share a folder.
    return _run_suite(each, Path(output).absolute(), workers, address)


def _run_suite(
    configs: list[Config], output: Path, workers: int, address: str | None
) -> Iterator[tuple[Config, RunResult]]:
    import ray

    options: dict[str, Any] = {"address": address}
    if address is None:  # "local": not a cluster that an environment variable names.
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level="error", **options)
    backend = keras.backend.backend()
    remote = ray.remote(_work).options(
        num_cpus=1,
        max_retries=0,  # Ray would start one that is out of memory again for ever.
        runtime_env={"env_vars": {"KERAS_BACKEND": backend}},
    )
    for module in loaded_files():  # Which no worker could import.
        ray.cloudpickle.register_pickle_by_value(module)
    parts = ray.put(ray.cloudpickle.dumps(added_parts()))
    died = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
    )
    waiting, failures = list(configs), []
    deaths: collections.Counter = collections.Counter()
    working: dict[Any, Config] = {}
    try:
        while waiting or working:
            while waiting and len(working) < workers:
                config = waiting.pop(0)
                folder = str(output / config.folder_name)
                content = ray.cloudpickle.dumps(config)
                working[remote.remote(content, parts, folder, _important())] = config
            (done,), _ = ray.wait(list(working))
            config = working.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                reason = str(getattr(error, "cause", None) or error)
                if isinstance(error, died):
                    deaths[config] += 1
                    if deaths[config] <= RESTARTS:
                        waiting.append(config)
                        continue
                    reason = (
                        f"its worker died {deaths[config]} times, as one does that is "
                        f"out of memory. {reason}"
                    )
                failures.append(f"{config.folder_name}: {reason.strip()}")
                continue
            result = find_result(config, output / config.folder_name)
            if result is None:
                failures.append(
                    f"{config.folder_name}: its result is not in {output}, which "
                    "all machines must share"
                )
                continue
            yield config, result
    finally:
        for reference in working:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()
    if failures:
        raise ChildProcessError(
            f"{len(failures)} of {len(configs)} runs failed:\n" + "\n".join(failures)
        )


def _work(config: bytes, parts: bytes, folder: str, wanted: dict[str, str]) -> None:
    """Runs one experiment, or what is left of it; called in a worker."""
    found = _important()
    if found != wanted:
        raise ValueError(
            f"A worker on {socket.gethostname()} has other versions of the libraries. "
            f"Received: {found}, where {wanted} is needed"
        )
    add_missing_parts(pickle.loads(parts))
    run(pickle.loads(config), folder, resume=True)


def _important() -> dict[str, str]:
    names = ("keras-psp", "keras", keras.backend.backend())
    return {name: version for name, version in versions().items() if name in names}


def _check_answers(address: str) -> None:
    """Raises a `ConnectionError` if nothing listens at an address of a cluster.

    Ray itself tries for minutes.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            "`address` must be the host and the port of a Ray cluster, such as "
            f"'10.0.0.1:6379'. Received: address={address!r}"
        )
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ConnectionError(
            f"No Ray cluster answers within {PATIENCE:.0f} seconds. "
            f"Received: address={address!r} ({error})"
        ) from error
