"""Unknown tasks get no answer, with the optimizations that users have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import unknown_matrix
from conftest import BACKEND

# The script alone, without `--quick`, runs more layers and all runtimes.
RUNTIMES = {
    "jax": ["predict"],
    "tensorflow": ["predict", "tf_saved_model", "onnx"],
    "torch": ["predict", "torch"],
}


@pytest.mark.skipif(BACKEND == "jax", reason="which has a process of its own")
@pytest.mark.parametrize("runtime", RUNTIMES[BACKEND])
def test_unknown_tasks_get_no_answer_whatever_follows(runtime, capsys):
    assert unknown_matrix.main(["--quick", runtime]) == 0
    assert ": 0 of " in capsys.readouterr().out


@pytest.mark.skipif(BACKEND != "jax", reason="which the tests let optimize")
def test_unknown_tasks_get_no_answer_from_optimized_programs():
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
    assert ": 0 of " in done.stdout, done.stdout + done.stderr[-2000:]
    assert done.returncode == 0
