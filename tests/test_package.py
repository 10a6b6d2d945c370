import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import keras
import pytest
from conftest import BACKEND

import keras_psp

HEAVY = (
    *("sklearn", "matplotlib", "rich", "tensorflow_datasets", "tensorflow"),
    "keras_tuner",
)


@pytest.mark.once
def test_import_brings_keras_and_numpy_alone():
    code = (
        "import sys, json, keras; before = set(sys.modules); import keras_psp; "
        "print(json.dumps([sorted(set(sys.modules) - before), sorted(before)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    added, before = json.loads(done.stdout)
    added = {name.split(".")[0] for name in added}
    assert "keras_psp" in added
    assert not added & set(HEAVY)
    assert ("tensorflow" in before) == (BACKEND == "tensorflow")


def test_datasets_and_benchmarks_are_imported_when_asked_for():
    assert keras_psp.datasets.permuted and keras_psp.benchmarks.run
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = keras_psp.nonsense


def test_public_names_exist():
    for package in (keras_psp, *(getattr(keras_psp, n) for n in keras_psp.__all__)):
        for name in getattr(package, "__all__", ()):
            assert hasattr(package, name), name


def test_classes_are_registered():
    for name in ("PSPDense", "Binary", "Identity", "TaskModel"):
        assert keras.saving.get_registered_object(f"keras_psp>{name}") is not None


@pytest.mark.once
def test_package_is_typed():
    folder = os.path.dirname(keras_psp.__file__)
    assert os.path.exists(os.path.join(folder, "py.typed"))


@pytest.mark.once
def test_wheel_and_sdist_hold_what_they_should(tmp_path):
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path)]
    subprocess.run([*command, str(root)], check=True, capture_output=True)
    wheel, sdist = next(tmp_path.glob("*.whl")), next(tmp_path.glob("*.tar.gz"))
    assert f"keras_psp-{keras_psp.__version__}-py3-none-any.whl" == wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"keras_psp-{keras_psp.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {
        "keras_psp",
        "keras_psp_cli",
        info,
    }
    assert "keras_psp_cli/options.json" in names
    assert "keras_psp/py.typed" in names and "keras_psp/layers/psp_dense.py" in names
    assert "keras-psp = keras_psp_cli:main" in scripts
    base = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert [name.split(">=")[0] for name in base] == ["keras", "numpy"]
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py"} <= names
