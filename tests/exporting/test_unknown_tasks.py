"""Unknown tasks get no answer, with the optimizations that users have."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import BACKEND

# The script alone, without `--quick`, runs more layers and all runtimes.
RUNTIMES = {
    "jax": ["predict"],
    "tensorflow": ["predict", "tf_saved_model", "onnx"],
    "torch": ["predict", "torch"],
}


def test_unknown_tasks_get_no_answer_whatever_follows():
    # In a process of its own: the tests switch most of JAX' optimizations off.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "JAX_DISABLE_MOST_OPTIMIZATIONS"
    }
    script = Path(__file__).with_name("unknown_matrix.py")
    done = subprocess.run(
        [sys.executable, script, "--quick", *RUNTIMES[BACKEND]],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count(": 0 of") == len(RUNTIMES[BACKEND]), done.stderr[-2000:]
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
