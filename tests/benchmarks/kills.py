"""Kills runs at file operations and at random moments, resumes and compares them.

python tests/benchmarks/kills.py --kills 20

prints a line for each kill and fails if a resumed run has another matrix than one that
was not killed. Each run is a process, forked from this one, which computes nothing: so
it is ready at once.
"""

# ruff: noqa: E402
import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What one process has compiled, the next one reads.
CACHE = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras
import sklearn.datasets  # noqa: F401
import tensorflow  # noqa: F401

from keras_psp import benchmarks
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RunResult

SMALL = {"tasks": 3, "steps": 4, "units": 16, "depth": 1, "learning_rate": 1e-2}
CONFIGS = (
    PermutedConfig(**SMALL, consolidation="gram"),
    PermutedConfig(**SMALL, consolidation="gram", learnable=True),
)
OPERATIONS = ("open", "write", "fsync", "chmod", "replace", "unlink", "mkdir")


def watch(log, kill_at):
    """Writes down each file operation; ends the process before number `kill_at`."""
    count = 0

    def wrap(owner, name):
        operation = getattr(owner, name)

        def watched(*args, **kwargs):
            nonlocal count
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            with open(log, "a") as file:  # Python's own open() is not watched.
                file.write(f"{name}\n")
            return operation(*args, **kwargs)

        setattr(owner, name, watched)

    for name in OPERATIONS:
        wrap(os, name)
    wrap(keras.Model, "save_weights")


def start(config, folder, log=None, kill_at=None):
    """Starts a run in a process of its own, and returns the process's number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        if log is not None:
            watch(log, kill_at)
        benchmarks.run(config, output=folder, resume=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(kills):
    seconds, operations = [], []
    with tempfile.TemporaryDirectory() as parent:
        for number, config in enumerate(CONFIGS):
            began, log = time.monotonic(), Path(parent, f"log-{number}")
            folder = Path(parent, f"whole-{number}")
            assert wait(start(config, folder, log)) == 0
            seconds.append(time.monotonic() - began)
            operations.append(log.read_text().split())
        wholes = [RunResult.load(Path(parent, f"whole-{n}")) for n in (0, 1)]
        assert len({str(whole.matrix) for whole in wholes}) == 2  # They can be told.
        draw, equal = random.Random(0), 0
        for kill in range(kills):
            number = kill % 2
            config, log = CONFIGS[number], Path(parent, f"log-kill-{kill}")
            folder = Path(parent, f"kill-{kill}")
            if kill % 4 == 3:
                moment = draw.uniform(0.2, 1) * seconds[number]
                process = start(config, folder)
                time.sleep(moment)
                os.kill(process, signal.SIGKILL)
                wait(process)
                where = f"after {moment:.1f} s"
            else:
                # Spread over all operations of a run, from the first to the last.
                count = len(operations[number])
                at = kill * (count - 1) // max(kills - 1, 1)
                assert wait(start(config, folder, log, at)) == -signal.SIGKILL
                where = f"at operation {at + 1} of {count}, {operations[number][at]}"
            left = sorted(os.listdir(folder)) if folder.exists() else []
            assert wait(start(config, folder)) == 0, (where, left)
            same = RunResult.load(folder).matrix == wholes[number].matrix
            files = os.listdir(folder)
            equal += same
            print(
                f"kill {kill + 1} {where}: left {', '.join(left) or 'nothing'}; "
                f"{'equal' if same else 'ANOTHER'} matrix, then {', '.join(files)}",
                flush=True,
            )
    print(f"{equal} of {kills} matrices are equal on {keras.backend.backend()}")
    return equal != kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    sys.exit(main(parser.parse_args().kills))
