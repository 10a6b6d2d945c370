import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import ClassVar

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once

from keras_psp import benchmarks
from keras_psp._core.memory import count_bytes
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import run
from keras_psp.benchmarks._tables import describe_command
from keras_psp.consolidation import EWC
from keras_psp.contexts import Binary
from keras_psp_cli.parser import build_parser
from keras_psp_cli.parser import read_options

SMALL = PermutedConfig(tasks=3, steps=40, units=64, depth=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run(SMALL, output=tmp_path_factory.mktemp("run"), overwrite=True)


def test_matrix_is_the_models_accuracy(result):
    matrix = result.accuracy_matrix
    assert np.isnan(matrix[np.triu_indices(3, k=1)]).all()
    assert (matrix[np.tril_indices(3)] > 0.6).all()
    # What evaluate() says, task by task, of a model trained in the same way.
    keras.utils.set_random_seed(SMALL.seed)
    tasks = SMALL.build_tasks()
    model = SMALL.build_model(tasks)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(SMALL.build_optimizer(), loss, metrics=["accuracy"])
    stream = tasks.stream(SMALL.steps, SMALL.batch_size)
    model.fit(stream, shuffle=False, verbose=0)
    for j in range(3):
        logs = model.evaluate(tasks.test(j, 1000), verbose=0, return_dict=True)
        assert matrix[2, j] == pytest.approx(logs["accuracy"], abs=0.006)


@pytest.mark.once
def test_same_seed_same_matrix(result):
    again = run(SMALL)
    np.testing.assert_array_equal(again.accuracy_matrix, result.accuracy_matrix)
    other = run(dataclasses.replace(SMALL, seed=1))
    assert not np.array_equal(other.accuracy_matrix, result.accuracy_matrix)


@pytest.mark.once
def test_superposition_keeps_what_the_standard_network_forgets():
    config = PermutedConfig(tasks=5, steps=150, units=128, depth=2, learning_rate=1e-3)
    binary = run(config)
    identity = run(dataclasses.replace(config, context="identity"))
    assert binary.average_accuracy > identity.average_accuracy + 0.1
    assert binary.forgetting < identity.forgetting - 0.1


@pytest.mark.once
def test_learnable_contexts_are_learned(result):
    config = dataclasses.replace(SMALL, learnable=True)
    assert len(config.build_model(SMALL.build_tasks()).trainable_variables) == 6
    learned = run(config)
    assert learned.contexts["orthogonality_drift"] > 1e-3
    assert result.contexts["orthogonality_drift"] is None
    widths = 64 + 2 * SMALL.units
    assert result.contexts["numbers_per_task"] == widths
    assert result.contexts["bits_per_task"] == 8 * widths
    assert learned.contexts["bits_per_task"] == 32 * widths


@pytest.mark.once
def test_a_complex_network_learns():
    config = dataclasses.replace(SMALL, complex_valued=True, context="complex")
    assert len(config.build_model(SMALL.build_tasks()).trainable_variables) == 6
    assert run(config).average_accuracy > 0.5


def test_result_tells_how_it_came_about(result, tmp_path):
    content = json.loads(result.save(tmp_path).read_text())
    assert content["config"] == dataclasses.asdict(SMALL)
    assert content["seed"] == 0 and content["experiment"] == "permuted"
    assert content["backend"] == BACKEND
    assert content["versions"]["keras"] == keras.__version__
    assert {"python", "numpy", BACKEND, "keras-psp"} <= set(content["versions"])
    assert "cpu" in content["device"]["name"].lower()
    assert content["jit_compile"] is (BACKEND == "jax")
    assert content["matrix"][0][1] is None
    for name, metric in benchmarks.METRICS.items():
        assert content[name] == metric(result.accuracy_matrix) == result.metrics[name]
    assert content["ahead"][0] is None
    expected = benchmarks.forward_transfer(result.ahead, num_classes=10)
    assert content["forward_transfer"] == expected
    model = SMALL.build_model(SMALL.build_tasks())
    weights = 4 * (64 * 64 + 64 * 64 + 64 * 10)
    assert weights < content["memory"]["weights"] < weights + 3 * 2 * (64 + 64 + 64)
    assert len(model.weights) == 6
    assert content["memory"]["consolidation"] == 0
    timings = content["timings"]
    assert len(timings["train_seconds"]) == len(timings["test_seconds"]) == 3
    assert 0 < sum(timings["train_seconds"]) < timings["total_seconds"]


@pytest.mark.once
def test_result_is_read_back(result, tmp_path):
    result.save(tmp_path)
    for path in (tmp_path, str(tmp_path), tmp_path / "result.json"):
        assert RunResult.load(path) == result


@pytest.mark.once
def test_bad_results_are_named(result, tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such"):
        RunResult.load(tmp_path / "no-such")
    path = result.save(tmp_path)
    text = path.read_text()
    no_matrix = json.dumps({**json.loads(text), "matrix": [[None]]})
    for damaged in ("", text[:100], "[]", "{}", no_matrix):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="damaged: .*result.json"):
            RunResult.load(path)


@pytest.mark.once
def test_folder_is_not_overwritten(result, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(SMALL, output=tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        run(SMALL, output=tmp_path / "notes.txt", overwrite=True)
    with pytest.raises(OSError, match="notes.txt"):
        run(SMALL, output=tmp_path / "notes.txt" / "run")
    assert os.listdir(tmp_path) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.once
def test_failed_write_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = result.save(tmp_path)
    before = path.read_bytes()
    broken = dataclasses.replace(result, seed=float("nan"))  # Not to be had in JSON.
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path)

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        dataclasses.replace(result, seed=1).save(tmp_path)
    assert os.listdir(tmp_path) == ["result.json"]
    assert path.read_bytes() == before


RUN = """
from keras_psp.benchmarks import PermutedConfig, run
import keras, sys
class Tell(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("trained", flush=True)
config = PermutedConfig(tasks=500, steps=20, units=8)
run(config, output=sys.argv[1], overwrite=True, callbacks=[Tell()])
"""


@pytest.mark.once
def test_killed_run_leaves_the_old_result(result, tmp_path):
    result.save(tmp_path)
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"trained\n"
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    left = {name for name in os.listdir(tmp_path) if not name.startswith(".")}
    left -= {name for name in left if name.endswith(".weights.h5")}
    assert left - {"progress.json"} == {"result.json"}
    assert RunResult.load(tmp_path) == result


@pytest.mark.once
def test_tensorboard_has_the_average_accuracy(tmp_path):
    config = dataclasses.replace(SMALL, tasks=2, steps=5)
    run(config, output=tmp_path / "run", tensorboard=True)
    events = list((tmp_path / "run" / "tensorboard").rglob("events.*"))
    assert events
    assert any(b"average_accuracy" in path.read_bytes() for path in events)
    with pytest.raises(ValueError, match="`tensorboard` needs an `output`"):
        run(config, tensorboard=True)


@pytest.mark.once
@pytest.mark.parametrize(
    "field, value, error, message",
    [
        ("tasks", 0, ValueError, "tasks=0"),
        ("tasks", "3", TypeError, "tasks='3'"),
        ("steps", 2.0, TypeError, "steps=2.0"),
        ("batch_size", -1, ValueError, "batch_size=-1"),
        ("units", True, TypeError, "units=True"),
        ("seed", -1, ValueError, "seed=-1"),
        ("learning_rate", float("nan"), ValueError, "learning_rate=nan"),
        ("learning_rate", "fast", TypeError, "learning_rate='fast'"),
        ("learnable", 1, TypeError, "learnable"),
        ("context", "hash", ValueError, "Known: binary, complex, "),
        ("source", "mnits", ValueError, "'mnist'"),
        ("optimizer", "rmsprob", ValueError, "'rmsprop'"),
        ("rank", -1, ValueError, "rank=-1"),
        ("recipe", "bets", ValueError, "Known: best, gram, none, paper"),
        ("protocol", "gmp", ValueError, "Known: dendrites, gpm, none, ritter"),
        ("task_learning_rate", 2.0, ValueError, "by `rank` or `head='multi'`"),
        ("part_bits", 4, ValueError, "part_bits=4 and rank=0"),
        ("part_bits", 9, ValueError, "bits=9"),
        ("guessed", -1, ValueError, "`guessed` must be"),
        ("consolidation", "freeze", ValueError, "trains the weights alone"),
    ],
)
def test_bad_configs(field, value, error, message):
    with pytest.raises(error, match=message):
        PermutedConfig(**{field: value})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(SMALL, field, value)


@pytest.mark.once
def test_tasks_are_guessed_of_one_network_with_a_context_for_each():
    for config, other in (
        (PermutedConfig, {"separate": True}),
        (benchmarks.RotatingConfig, {"assignment": "step"}),
    ):
        with pytest.raises(ValueError, match="guessed=5"):
            config(guessed=5, **other)


@pytest.mark.once
def test_what_is_measured_afterwards_costs_no_result(tmp_path):
    config = dataclasses.replace(SMALL, tasks=2, steps=5, learning_rate=1e30, guessed=5)
    with pytest.warns(UserWarning, match="no figures after the last task: .*finite"):
        result = run(config, tmp_path)
    assert result.afterwards == {} and RunResult.load(tmp_path) == result


@pytest.mark.once
def test_named_settings():
    best = PermutedConfig(recipe="best", seed=1)
    assert (best.rank, best.context, best.head) == (4, "fast_rotation", "multi")
    assert best.recipe == "best" and best.seed == 1 and best.tasks == 10
    other = PermutedConfig(recipe="best", context="binary")
    assert other.context == "binary"
    names = {field.name for field in dataclasses.fields(best)}
    for config in (best, other):  # The command for it makes it again.
        fields = dataclasses.asdict(config)
        command = describe_command("permuted", fields, [config.seed])
        args = build_parser(read_options()).parse_args(shlex.split(command)[1:])
        given = {name: value for name, value in vars(args).items() if name in names}
        assert PermutedConfig(**given) == config
    assert dataclasses.replace(best, seed=2).context == "fast_rotation"
    assert PermutedConfig(recipe="paper").learning_rate == 1e-4
    for name in PermutedConfig.protocols:
        config = PermutedConfig(protocol=name, consolidation="gram", rank=2)
        assert (config.source, config.rank) == ("mnist", 2)
        assert dataclasses.replace(config, seed=3).units == config.units
    gpm = PermutedConfig(protocol="gpm", recipe="gram", learning_rate=0.03)
    assert (gpm.optimizer, gpm.learning_rate, gpm.schedule) == ("sgd", 0.03, "cosine")
    assert PermutedConfig(protocol="gpm", units=100) == PermutedConfig(protocol="gpm")
    with pytest.raises(ValueError, match="'gpm' has units=100. Received: units=64"):
        PermutedConfig(protocol="gpm", units=64)
    split = benchmarks.IncrementalConfig(protocol="split-mnist")
    assert (split.model, split.source, split.tasks) == ("mlp", "mnist", 5)
    for other in (benchmarks.RotatingConfig, benchmarks.IncrementalConfig):
        with pytest.raises(ValueError, match="protocol"):
            other(protocol="gpm")


@pytest.mark.parametrize("kwargs", [{}, once({"consolidation": "freeze"})])
def test_parts_of_low_rank_are_trained(tmp_path, kwargs):
    own = {"head": "multi", "rank": 2, "part_bits": 4, "guessed": 40}
    config = dataclasses.replace(SMALL, **{**own, "consolidation": "gram", **kwargs})
    result = run(config, tmp_path)
    assert (result.accuracy_matrix[np.tril_indices(3)] > 0.6).all()
    changes = {"rank": 0, "part_bits": 0}
    without = dataclasses.replace(config, **changes).build_model(config.build_tasks())
    own, parts = count_bytes(without.weights), 3 * 2 * (64 + 64 + 64 + 64)
    assert result.memory["weights"] == own + 4 * parts
    few = result.afterwards["in_few_bits"]
    assert few["weights"] == own + parts // 2 + 3 * 2 * 2 * 4  # And scales.
    np.testing.assert_allclose(few["accuracy"], result.accuracy_matrix[-1], atol=0.06)
    guessed = result.afterwards["guessed"]
    for way, least in (("by_image", 0.5), ("by_batch", 0.6)):
        found, accuracy = np.array([guessed[way][x] for x in ("found", "accuracy")])
        assert found.mean() > least and (accuracy > found - 0.4).all()
    assert RunResult.load(tmp_path) == result
    for damage in ({"in_few_bits": {**few, "accuracy": [2.0] * 3}}, {"guessed": {}}):
        dataclasses.replace(result, afterwards=damage).save(tmp_path)
        with pytest.raises(ValueError, match="damaged"):
            RunResult.load(tmp_path)


@pytest.mark.once
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adamw", "schedulefreeadamw"])
def test_optimizers(optimizer):
    config = dataclasses.replace(SMALL, optimizer=optimizer, tasks=1, steps=2)
    assert run(config).accuracy_matrix.shape == (1, 1)


@pytest.mark.once
def test_steps_that_no_execution_divides():
    config = dataclasses.replace(SMALL, tasks=2, steps=13)
    seconds = run(config).timings["train_seconds"]
    assert len(seconds) == 2


class Own(PermutedConfig):
    """An optimizer, a consolidation and a layer of one's own."""

    experiment = "own"
    ended: ClassVar[list] = []

    def build_optimizer(self):
        ended = self.ended

        class Mine(EWC):
            def end_task(self, model, data=None):
                ended.append(len(ended))
                super().end_task(model, data)

        return keras.optimizers.LossScaleOptimizer(Mine("adam"), initial_scale=4.0)


class OwnContext(Binary):
    def orthogonality_drift(self):
        raise NotImplementedError("no drift")

    numbers_per_task = None


class Hidden(PermutedConfig):
    """A model whose layers have contexts that cannot be read."""

    def build_model(self, tasks):
        model = super().build_model(tasks)
        for layer in model.layers:
            if hasattr(layer, "context"):
                layer.context.__class__ = OwnContext
        model.layers[0].context = "of another kind"
        return model


@pytest.mark.once
def test_ones_own_consolidation_is_told_of_the_end_of_a_task(tmp_path):
    Own.ended.clear()
    config = Own(tasks=3, steps=3, units=8, depth=1)
    result = run(config, output=tmp_path)
    assert Own.ended == [0, 1, 2]
    assert result.memory["consolidation"] > 0
    assert RunResult.load(tmp_path) == result
    (row,) = next(iter(benchmarks.report([tmp_path]).tables.values()))
    assert row["beside"] != "0 B"


@pytest.mark.once
def test_a_model_that_cannot_be_described_leaves_its_result(tmp_path):
    config = Hidden(tasks=2, steps=3, units=8, depth=1, learnable=True)
    with pytest.warns(UserWarning, match="The result has no (drift|numbers)"):
        result = run(config, output=tmp_path)
    assert result.contexts["orthogonality_drift"] is None
    assert result.contexts["numbers_per_task"] is None
    assert RunResult.load(tmp_path) == result
    benchmarks.report([tmp_path])


@pytest.mark.once
def test_tasks_need_test_examples():
    class Untested(PermutedConfig):
        def build_tasks(self):
            tasks = super().build_tasks()
            tasks._test.stops[1] = 0
            return tasks

    with pytest.raises(ValueError, match="none for task 1"):
        run(Untested(tasks=2, steps=2))
