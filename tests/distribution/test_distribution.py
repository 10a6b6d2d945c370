"""Training on several devices, and by several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import keras
import pytest
from conftest import BACKEND

from keras_psp.distribution import layout_map

HERE = Path(__file__).parent


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_tests(file, which, **environment):
    """Runs some of a file's tests; `pytest tests/distribution/on_jax.py` runs all."""
    options = ["-q", "-x", "-k", which, "-p", "no:cacheprovider"]
    run("-m", "pytest", *options, HERE / file, **environment)


def check_cases(file, rows, *names):
    """Runs cases in a program of several processes, which writes a row for each."""
    path = os.pathsep.join([str(HERE), *sys.path])
    run(HERE / file, rows, *names, PYTHONPATH=path)
    found = [json.loads(row) for row in rows.read_text().splitlines()]
    assert [f"{row['model']}-{row['optimizer']}" for row in found] == [*names]
    for row in found:
        cases.check(row)


@pytest.mark.skipif(BACKEND != "jax", reason="Eight devices of JAX'.")
def test_on_jax():
    flags = "--xla_force_host_platform_device_count=8"
    equal = "(encoder-sgd or mlp-gram) and ModelParallel"
    which = f"({equal}) or (eighth and tasks) or names or after"
    run_tests("on_jax.py", which, XLA_FLAGS=flags)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Two CPUs of TensorFlow's.")
def test_on_tensorflow():
    run_tests("on_tensorflow.py", "mlp-gram or encoder-sgd or after")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Two workers of TensorFlow's.")
def test_on_workers(tmp_path):
    check_cases("on_workers.py", tmp_path / "rows", "mlp-ewc")


@pytest.mark.skipif(BACKEND != "torch", reason="Two processes of torch's.")
def test_on_torch(tmp_path):
    # Another case is run by tests/test_tools.py.
    names = ("mlp-gram", "mlp-per_task", "permuted-sgd", "resnet18-ewc", "encoder-gram")
    check_cases("on_torch.py", tmp_path / "rows", *names)


def mesh(*shape, names=("batch", "model")):
    devices = [f"cpu:{i}" for i in range(shape[0] * shape[1])]
    return keras.distribution.DeviceMesh(shape, names, devices)


def test_layout_of_each_weight():
    layouts = layout_map(lambda: cases.build("mlp"), mesh(1, 4))
    axes = {path.split("/", 1)[1]: layout.axes for path, layout in layouts.items()}
    assert axes["context/contexts"] == ("model", None)
    assert axes["low_rank/first"] == ("model", None, None)
    assert axes["core/core"] == ("model", None, None)
    assert axes["base/kernel"] == (None, "model")
    assert axes["moving_mean"] == ("model", None)


@pytest.mark.once
def test_banks_over_inputs():
    layouts = layout_map(lambda: cases.build("mlp"), mesh(1, 2), banks="inputs")
    axes = {path.split("/", 1)[1]: layout.axes for path, layout in layouts.items()}
    assert axes["low_rank/first"] == (None, "model", None)
    assert axes["context/contexts"] == (None, "model")


@pytest.mark.once
@pytest.mark.parametrize(
    ("shape", "names", "arguments", "message"),
    [
        ((1, 3), ("batch", "model"), {}, "3 devices, 8 tasks in"),
        ((1, 2), ("batch", "tasks"), {}, "an axis 'model'"),
        ((1, 2), ("batch", "model"), {"banks": "outputs"}, "banks"),
    ],
)
def test_bad_inputs(shape, names, arguments, message):
    with pytest.raises(ValueError, match=message):
        layout_map(lambda: cases.build("mlp"), mesh(*shape, names=names), **arguments)


@pytest.mark.once
def test_names_are_as_if_nothing_had_been_built():
    name = cases.build("mlp").name
    layout_map(lambda: cases.build("mlp"), mesh(1, 4))
    number = int(name.rpartition("_")[2]) if name[-1].isdigit() else 0
    assert cases.build("mlp").name == f"task_model_{number + 1}"
