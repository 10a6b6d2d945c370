"""Types: mypy on the library, on a user's script, and a count of what has none."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_psp

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
USER_SCRIPT = """\
import keras_psp

model = keras_psp.models.mlp((64,), num_classes=10, num_tasks=3, context="binary")
model.add_tasks(2)
print(model.num_tasks, keras_psp.diagnostics.memory(model))
plain = keras_psp.extract(model, task=4)
"""
# What a type checker must know, in parts of its words.
REVEALED = {
    "keras_psp.datasets.permuted": "TaskSequence",
    "keras_psp.benchmarks.AccuracyMatrix": "AccuracyMatrix",
    "keras_psp.models.mlp": "TaskModel",
}


def run_mypy(*arguments):
    command = [sys.executable, "-m", "mypy", *arguments]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def check_as_a_user(script):
    """Runs mypy without our configuration; errors inside the library are not shown.

    Nor is what the backends' own code says: to read it takes longest.
    """
    config = script.with_name("mypy.ini")
    config.write_text(
        "[mypy]\n[mypy-jax.*,tensorflow.*,torch.*]\nfollow_imports = skip\n"
    )
    return run_mypy(
        *("--strict", f"--config-file={config}", "--follow-imports=silent"),
        *("--cache-dir=.mypy_cache/user", str(script)),
    )


def public_functions():
    """Yields name and function of all that is reachable from `__all__`."""
    packages = [getattr(keras_psp, name) for name in keras_psp.__all__]
    for package in (keras_psp, *filter(inspect.ismodule, packages)):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value):
                yield f"{value.__module__}.{value.__qualname__}", value
            elif inspect.isclass(value):
                yield from public_methods(value)


def public_methods(cls):
    """Yields name and function of a class' methods and properties that we wrote."""
    for base in cls.__mro__:
        if not base.__module__.startswith("keras_psp"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            if isinstance(value, property):
                value = value.fget
            value = inspect.unwrap(getattr(value, "__func__", value))
            if inspect.isfunction(value) and value.__module__.startswith("keras_psp"):
                yield f"{value.__module__}.{value.__qualname__}", value


def is_annotated(function):
    parameters = [
        parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    ]
    given = [p.annotation is not inspect.Parameter.empty for p in parameters]
    returns = "return" in function.__annotations__
    if function.__name__ == "__init__" and given:
        returns = True  # As mypy has it.
    return all(given) and returns


def test_mypy_is_clean_on_the_library():
    done = run_mypy()
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_functions_are_annotated():
    functions = dict(public_functions())
    assert len(functions) > 300
    assert not [name for name, f in functions.items() if not is_annotated(f)]


def test_a_users_script_is_clean_under_strict(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(USER_SCRIPT)
    done = check_as_a_user(script)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_known_in_an_editor(tmp_path):
    script = tmp_path / "script.py"
    lines = [f"reveal_type({expression})" for expression in REVEALED]
    script.write_text("\n".join(["import keras_psp", *lines, "keras_psp.nonsense"]))
    done = check_as_a_user(script)
    for expression, kind in REVEALED.items():
        assert kind in done.stdout, f"{expression}: {done.stdout}"
    assert 'Module has no attribute "nonsense"' in done.stdout
