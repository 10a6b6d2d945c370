"""The rules of the house that a program can check: order, private names, validators.

Each rule has a table of the places that may break it. The tables may only get shorter.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import keras_psp

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_psp"
TREES = {
    file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text())
    for file in sorted(PACKAGE.rglob("*.py"))
}
PRIVATE = "_core/private.py"
FOREIGN_MODULES = ("keras.src.", "tensorflow.python.", "torch._", "jax._src.")
# A subclass of Keras' `Optimizer` has no public name for these.
OPTIMIZER_NAMES = {"_get_variable_index", "_trainable_variables", "_variables"}
MAY_USE_PRIVATE_NAMES = {
    "consolidation/_fisher.py": OPTIMIZER_NAMES,
    "consolidation/consolidation.py": OPTIMIZER_NAMES,
    "consolidation/ewc.py": OPTIMIZER_NAMES,
    "consolidation/gram.py": OPTIMIZER_NAMES,
    "consolidation/synaptic_intelligence.py": OPTIMIZER_NAMES,
    "optimizers/_around.py": OPTIMIZER_NAMES,
    "optimizers/per_task.py": OPTIMIZER_NAMES,
    "layers/_superposed_conv.py": {"_compute_causal_padding"},
}
# `export()` and `extract()` ask whether a checked task is one task, and no tensor.
MAY_VALIDATE_NUMBERS = {
    "_core/checks.py",
    "exporting/export.py",
    "models/resnet18.py",
    "models/_takes_tasks.py",
}


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def own_names():
    """The private names that the library itself defines."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id  # The field of a dataclass.


def private_names(tree, own):
    """Yields the private names of other libraries in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in own:
                yield node.attr
            elif ast.unparse(node).startswith(FOREIGN_MODULES):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if f"{name}.".startswith(FOREIGN_MODULES):
                    yield name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if f"{alias.name}.".startswith(FOREIGN_MODULES):
                    yield alias.name


def overridden_names():
    """Yields each class of ours and the private name of another library it replaces."""
    for _, name, _ in pkgutil.walk_packages(keras_psp.__path__, "keras_psp."):
        for value in vars(importlib.import_module(name)).values():
            if not inspect.isclass(value):
                continue
            ours = [cls for cls in value.__mro__ if cls.__module__.startswith("keras_")]
            theirs = [cls for cls in value.__mro__ if cls not in ours]
            for cls in ours:
                if cls.__module__ == "keras_psp._core.private":
                    continue
                for name in filter(is_private, vars(cls)):
                    if any(name in vars(base) for base in theirs):
                        yield cls.__name__, name


def validates_a_number(tree):
    """Whether the file raises an error of its own where a value is not a number."""
    kinds = {"int", "float", "Integral", "Real", "integer", "number"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.If) or not isinstance(node.body[-1], ast.Raise):
            continue
        for test in ast.walk(node.test):
            if isinstance(test, ast.UnaryOp) and isinstance(test.operand, ast.Call):
                call = test.operand
                if ast.unparse(call.func) == "isinstance":
                    if kinds & set(re.findall(r"\w+", ast.unparse(call.args[1]))):
                        return True
    return False


def test_rooms_import_only_from_rooms_beneath_them():
    cli = pytest.importorskip("importlinter.cli")
    assert cli.lint_imports(str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_an_import_of_a_room_above_is_found(tmp_path, monkeypatch):
    cli = pytest.importorskip("importlinter.cli")
    package = tmp_path / "two_rooms"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "above.py").write_text("")
    (package / "below.py").write_text("from two_rooms import above\n")
    config = tmp_path / "setup.toml"
    config.write_text(
        '[tool.importlinter]\nroot_package = "two_rooms"\n'
        '[[tool.importlinter.contracts]]\nname = "rooms"\ntype = "layers"\n'
        'containers = ["two_rooms"]\nlayers = ["above", "below"]\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.lint_imports(str(config), no_cache=True) != 0


def test_private_names_of_other_libraries_stand_in_one_file():
    own = set(own_names())
    found = {path: set(private_names(tree, own)) for path, tree in TREES.items()}
    found.pop(PRIVATE)
    for path, names in found.items():
        strange = names - MAY_USE_PRIVATE_NAMES.get(path, set())
        assert not strange, f"{path} uses {strange}: move them to {PRIVATE}"


def test_private_names_of_other_libraries_are_not_overridden():
    assert not set(overridden_names())


def test_numbers_are_validated_in_one_file():
    found = {path for path, tree in TREES.items() if validates_a_number(tree)}
    assert found <= MAY_VALIDATE_NUMBERS


def test_internal_modules_say_why_they_are_there():
    for path, tree in TREES.items():
        assert ast.get_docstring(tree), f"{path} has no docstring"
