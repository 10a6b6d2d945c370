"""Every example that a reader may copy is run."""

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import once

import keras_psp
from keras_psp import cli

ROOT = Path(__file__).parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(keras_psp.__path__, "keras_psp.")
    if not name.endswith(".cli")
]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "keras_psp").glob("*/*.md"))]
BLOCKS = {
    language: [
        code
        for text in TEXTS
        for code in re.findall(rf"```{language}\n(.*?)```", text.read_text(), re.S)
    ]
    for language in ("python", "sh")
}


@pytest.mark.once
@pytest.mark.usefixtures("built_in_parts")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module)
    assert not failed


@pytest.mark.once
def test_public_names_have_examples():
    # Whose examples are elsewhere.
    without = (
        "Consolidation",
        "Context",
        "Evaluation",
        "Report",
        "RunResult",
        "Source",
    )
    for package in (keras_psp, *(getattr(keras_psp, n) for n in keras_psp.__all__)):
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if callable(value) and name not in without:
                assert ">>>" in value.__doc__, name


def _numbers():
    """The programs, those of README.md first: these run on every backend."""
    everywhere = len(re.findall("```python\n", TEXTS[0].read_text()))
    assert everywhere
    numbers = range(len(BLOCKS["python"]))
    return [number if number < everywhere else once(number) for number in numbers]


@pytest.mark.usefixtures("built_in_parts")
@pytest.mark.parametrize("number", _numbers())
def test_readme_program(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(BLOCKS["python"][number], "README.md", "exec")
    exec(code, {"__name__": "readme"})


@pytest.mark.once
@pytest.mark.parametrize("number", range(len(BLOCKS["sh"])))
def test_readme_commands(number, tmp_path, monkeypatch):
    code = BLOCKS["sh"][number]
    monkeypatch.chdir(tmp_path)
    for line in code.splitlines():
        words = line.split("#")[0].split()
        if words[0] == "keras-psp":  # As it stands, but for how long it takes.
            words = words[1:]
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
            assert cli.main(words) == 0
        elif words[0].startswith("./"):
            assert (ROOT / words[0]).exists()  # ./tools/test runs this test.
        elif words[0] == "python":  # An example, which another test runs.
            assert words[1].startswith("examples/") and (ROOT / words[1]).exists()
        else:
            assert words[:2] == ["pip", "install"] or words[0] in (
                "git",
                "cd",
                "export",
            ), line


@pytest.mark.once
def test_readmes_have_blocks_of_known_languages():
    assert BLOCKS["python"] and BLOCKS["sh"]
    for text in TEXTS:
        languages = re.findall(r"^```(\w+)$", text.read_text(), re.M)
        assert set(languages) <= set(BLOCKS), text


@pytest.mark.once
def test_every_package_has_a_readme():
    for init in (ROOT / "keras_psp").glob("*/__init__.py"):
        assert (init.parent / "README.md").exists(), init.parent


@pytest.mark.once
def test_the_newcomers_walk_works_as_written(tmp_path):
    """Follows CONTRIBUTING.md in a copy of the repository."""
    for name in ("keras_psp", "keras_psp_cli", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    walk = CONTRIBUTING.read_text().split("<!-- walk -->")[1]
    walk = walk.split("<!-- end of walk -->")[0]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    text_before = ""
    for part in re.split(r"(?m)^(```\w+\n.*?^```$)", walk, flags=re.S):
        language, _, code = part.removesuffix("```").partition("\n")
        if language == "```python":
            path = re.findall(r"`([\w/]+\.py)`", text_before)[-1]
            assert not (tmp_path / path).exists(), path
            (tmp_path / path).write_text(code)
        elif language == "```diff":
            _apply(code, tmp_path)
        elif language == "```sh":
            for line in code.splitlines():
                command = [sys.executable, "-m", *line.split()]
                done = subprocess.run(
                    command, cwd=tmp_path, env=env, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        else:
            text_before = part


def _apply(diff, folder):
    """Applies a diff that begins with `# path`, its hunks separated by `@@`."""
    title, _, hunks = diff.partition("\n")
    path = folder / title.removeprefix("# ")
    text = path.read_text()
    for hunk in hunks.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{path}: {old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.once
def test_the_site_builds_without_warnings(tmp_path):
    command = ["mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api/keras_psp.layers/index.html").read_text()
    assert "PSPDense" in page
    page = (tmp_path / "site/api/keras_psp.models/index.html").read_text()
    assert "keras_psp.models.TaskModel.remove_task" in page  # From its mixin.
    assert "<svg" in (tmp_path / "site/docs/architecture/index.html").read_text()
