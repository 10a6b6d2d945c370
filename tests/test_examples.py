"""Every example runs, and its network learns.

On JAX, which compiles the thousands of steps that they train for, and in this process,
because an import of everything takes longest.
"""

import importlib
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKEND

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = [*sorted(FOLDER.glob("*.py")), FOLDER / "machines" / "train.py"]


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


@pytest.mark.once
def test_the_page_of_machines_has_the_worst_first(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "machines"))
    page = importlib.import_module("page")
    names, weeks = ["calm", "<broken>", "fair"], np.full((3, 48, 8), 0.1, "float32")
    weeks[1, 20:26, 3] = 9
    weeks[2, 30] = 1
    np.savez(
        tmp_path / "week.npz",
        names=names,
        week=weeks,
        fault=[(0, 0), (20, 26), (0, 0)],
        limit=[0.02, 0.2, 0.2],
    )
    monkeypatch.setattr(page, "ask", lambda server, name, windows: 0 * windows)
    given = ["page.py", str(tmp_path), "no server", str(tmp_path / "page.html")]
    monkeypatch.setattr(sys, "argv", given)
    page.main()
    text = (tmp_path / "page.html").read_text()
    assert re.findall("<strong>(.*)</strong>", text) == [
        "&lt;broken&gt;",
        "fair",
        "calm",
    ]
    (fault,) = re.findall('<rect class="fault" x="(.*)" y="0" width="(.*)" ', text)
    assert fault == ("12", "6")  # From the first hour of the week.
    errors = (0.01 * 58 + 81 * 6) / 64 / 0.2
    assert f"up to {errors:.1f} × its threshold, 13 h above" in text
    lines = re.findall('<polyline points="(.*)"/>', text)
    assert [len(line.split()) for line in lines] == [40, 40, 40]
    assert "1 machines had a fault" in text and "1 are among them" in text
