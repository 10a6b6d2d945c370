"""Own parts of the benchmark: registered by name, or given as objects."""

import dataclasses
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_psp
from keras_psp import benchmarks
from keras_psp import cli
from keras_psp import datasets
from keras_psp.benchmarks.register import _TABLES
from keras_psp.contexts import Binary

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("built_in_parts")]

SMALL = {"tasks": 2, "steps": 6, "units": 8, "depth": 1, "learning_rate": 0.01}
NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(300, 6)).astype("float32")
Y = NUMBERS.integers(0, 3, 300)


class Signs(Binary):
    """A context of one's own."""


def scaled(optimizer):
    return keras_psp.consolidation.EWC(optimizer, strength=1e4)


def noisy(model, stream, **options):
    def add_noise(x, y):
        noise = tf.random.stateless_normal(tf.shape(x["image"]), (0, 1))
        return {**x, "image": x["image"] + noise}, y

    return model.fit(stream.map(add_noise), **options)


def small(tasks, config):
    return keras_psp.models.mlp(
        tasks.image_shape,
        tasks.num_classes,
        tasks.num_contexts,
        units=5,
        depth=1,
        context=config.context,
        seed=config.seed,
    )


@dataclasses.dataclass(frozen=True)
class Halves(benchmarks.PermutedConfig):
    """A task sequence of one's own."""

    experiment = "halves"
    shift: int = benchmarks.option(1, "how far images are shifted")

    def build_tasks(self):
        return datasets.permuted(self.source, self.tasks, seed=self.seed + self.shift)


OBJECTS = {
    "source": ("numbers", lambda: (X, Y)),
    "context": ("signs", Signs),
    "consolidation": ("scaled", scaled),
    "training": ("noisy", noisy),
    "model": ("small", small),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_part_by_name_and_as_an_object(kind):
    name, value = OBJECTS[kind]
    benchmarks.register(kind, name, value)
    by_name = benchmarks.run(benchmarks.PermutedConfig(**SMALL, **{kind: name}))
    assert by_name.config[kind] == name
    plain = benchmarks.run(benchmarks.PermutedConfig(**SMALL))
    if kind != "context":  # Whose signs are those of its base class.
        assert by_name.matrix != plain.matrix
    if kind == "source":
        value = dataclasses.replace(datasets.load_source((X, Y)), name="others")
    given = benchmarks.run(benchmarks.PermutedConfig(**SMALL, **{kind: value}))
    assert given.matrix == by_name.matrix
    assert given.config[kind] == getattr(value, "__name__", "others")


def test_a_definition_may_run_again_as_in_a_notebook():
    def build(units):
        def mine(tasks, config):
            return keras_psp.models.mlp((8, 8, 1), 10, 2, units=units, depth=1)

        return mine

    for units in (4, 5):
        config = benchmarks.PermutedConfig(**SMALL, model=build(units))
        model = config.build_model(config.build_tasks())
        assert model.layers[-1].kernel.shape[0] == units


def test_an_experiment_in_a_suite_and_a_report(tmp_path):
    benchmarks.register("experiment", "halves", Halves)
    configs = [Halves(**SMALL), Halves(**SMALL, context="identity")]
    benchmarks.register("suite", "mine", configs)
    assert cli.main(["run", "--suite", "mine", "--output", str(tmp_path)]) == 0
    found = benchmarks.report([tmp_path])
    assert [*found.tables] == ["Halves digits: 2 tasks of 6 steps"]


PARTS = """
import numpy as np
from keras_psp import benchmarks

rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 6)).astype("float32"), rng.integers(0, 3, 300)
benchmarks.register("source", "numbers", (x, y))
"""


def test_parts_from_a_file_and_from_a_package(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    parts = tmp_path / "mine" / "random.py"  # As a module of Python's own.
    parts.write_text(PARTS)
    words = ["run", "permuted", "--tasks", "2", "--steps", "6", "--source", "numbers"]
    with_file = [*words, "--parts", str(parts)]
    assert cli.main([*with_file, "--output", str(tmp_path / "one")]) == 0
    assert sys.modules["random"] is random
    assert cli.main([*with_file[:-1], "no.py"]) == 2
    assert "no.py" in capsys.readouterr().err
    # An installed package, in a process of its own.
    (tmp_path / "with_parts.py").write_text(PARTS)
    information = tmp_path / "with_parts-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: with-parts\nVersion: 1\n")
    points = "[keras_psp.benchmarks]\nall = with_parts\n"
    (information / "entry_points.txt").write_text(points)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "keras_psp_cli", *words]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    matrices = [
        json.loads((tmp_path / name / "result.json").read_text())["matrix"]
        for name in ("one", "two")
    ]
    assert matrices[0] == matrices[1]


@pytest.mark.parametrize(
    "kind, name, value, error, message",
    [
        ("sourse", "mine", (X, Y), ValueError, "Did you mean 'source'"),
        ("source", "digits", (X, Y), ValueError, "taken by another source"),
        ("model", "my model", small, ValueError, "my model"),
        ("model", 3, small, ValueError, "name=3"),
        ("source", "mine", 3, TypeError, "int"),
        ("context", "mine", Signs(2), TypeError, "subclass"),
        ("consolidation", "mine", "ewc", TypeError, "callable"),
        ("experiment", "mine", Halves, ValueError, "experiment='halves'"),
        ("experiment", "mine", small, TypeError, "subclass"),
        ("suite", "mine", [Halves(), 3], TypeError, "list of configs"),
        ("suite", "mine", [], TypeError, "list of configs"),
    ],
)
def test_bad_parts(kind, name, value, error, message):
    before = {kind: dict(table) for kind, table in _TABLES.items()}
    with pytest.raises(error, match=message):
        benchmarks.register(kind, name, value)
    assert {kind: dict(table) for kind, table in _TABLES.items()} == before


@pytest.mark.parametrize(
    "kind, value, error, message",
    [
        ("source", "mine", ValueError, "Unknown source. Known: .*digits"),
        ("model", "mlb", ValueError, "Did you mean 'mlp'"),
        ("training", "fitt", ValueError, "Did you mean 'fit'"),
        ("source", (X, Y), TypeError, "benchmarks.register"),
        ("context", Binary(2), TypeError, "benchmarks.register|subclass"),
        ("training", lambda *x: None, TypeError, "benchmarks.register"),
    ],
)
def test_bad_objects(kind, value, error, message):
    with pytest.raises(error, match=message):
        benchmarks.PermutedConfig(**{kind: value})


def test_another_object_of_a_name_that_is_taken():
    def digits():
        return X, Y

    with pytest.raises(ValueError, match="another source of this name"):
        benchmarks.PermutedConfig(source=digits)
