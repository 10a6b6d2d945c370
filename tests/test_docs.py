"""Every example that a reader may copy is run."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_psp

ROOT = Path(__file__).parent.parent
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(keras_psp.__path__, "keras_psp.")
    if not name.endswith(".cli")
]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "keras_psp").glob("*/README.md"))]
BLOCKS = [
    block
    for text in TEXTS
    for block in re.findall(r"```(\w+)\n(.*?)```", text.read_text(), re.S)
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


def test_public_names_have_examples():
    # Whose examples are elsewhere.
    without = ("Consolidation", "Context", "Report", "RunResult", "Source")
    for package in (keras_psp, *(getattr(keras_psp, n) for n in keras_psp.__all__)):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if callable(value) and name not in without:
                assert ">>>" in value.__doc__, name


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_block(number, tmp_path, monkeypatch):
    language, code = BLOCKS[number]
    monkeypatch.chdir(tmp_path)
    if language == "python":
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        return
    assert language == "sh"
    for line in code.splitlines():
        words = line.split("#")[0].split()
        if words[0] == "keras-psp":
            # The command as it stands, but for how long it takes.
            words = [sys.executable, "-m", "keras_psp.cli", *words[1:]]
            if "run" in words or "tune" in words:
                words += ["--tasks", "2", "--steps", "6"]
                words += [] if "digits" in words else ["--source", "digits"]
            if "run" in words:
                words += [] if "incremental" in words else ["--units", "8"]
            if "tune" in words:
                words += ["--trials", "2"]
            for i, word in enumerate(words):
                if "*" in word:
                    words[i : i + 1] = map(str, sorted(tmp_path.glob(word)))
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif words[0].startswith("./"):
            assert (ROOT / words[0]).exists()  # ./tools/test runs this test.
        elif words[0] == "python":  # An example, which another test runs.
            assert words[1].startswith("examples/") and (ROOT / words[1]).exists()
        else:
            assert words[:2] == ["pip", "install"] or words[0] in ("git", "cd"), line


def test_readme_has_blocks():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
