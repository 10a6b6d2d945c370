"""Every example runs, and its network learns.

On JAX, which compiles the thousands of steps that they train for, and in this process,
because an import of everything takes longest.
"""

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import BACKEND

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.skipif(BACKEND != "jax", reason="They are tested on JAX.")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if path.name == "serve.py":  # Its server is a process that imports what it runs.
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(
            [sys.executable, str(path)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # As users have them.
            runpy.run_path(str(path), run_name="__main__")
        printed = capsys.readouterr().out
    accuracy = re.search(r"average accuracy over \d+ tasks: (\S+)", printed)
    assert float(accuracy[1]) > 0.9


@pytest.mark.once
def test_there_are_examples():
    assert EXAMPLES
