import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import BACKEND

import keras_psp
from keras_psp import benchmarks
from keras_psp import cli
from keras_psp import tuning
from keras_psp.benchmarks import EXPERIMENTS
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RotatingConfig
from keras_psp.benchmarks import Search
from keras_psp.tuning import run_hyper_model

CONFIG = PermutedConfig(tasks=2, steps=5, depth=1)
SPACE = {"learning_rate": [1e-3, 1e-2], "units": [8, 16], "learnable": [False, True]}
TUNE = ["tune", "permuted", "--tasks", "2", "--steps", "5", "--depth", "1"]
UNITS = ["--search", "units=8,16"]


def chosen(results):
    return [{name: result.config[name] for name in SPACE} for result in results]


class Stop(keras.callbacks.Callback):
    """Ends a run as a kill does, in its second task."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.once
def test_a_killed_search_comes_to_the_same_trials(tmp_path, monkeypatch):
    whole = tuning.tune(CONFIG, tmp_path / "whole", SPACE, trials=2)
    assert len(whole) == 2 and len({str(one) for one in chosen(whole)}) == 2
    accuracies = [result.average_accuracy for result in whole]
    assert accuracies == sorted(accuracies, reverse=True)

    runs = []

    def run(config, callbacks, **options):
        runs.append(config)
        callbacks = [*callbacks, Stop()] if len(runs) == 2 else callbacks
        return benchmarks.run(config, callbacks=callbacks, **options)

    folder = tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(run_hyper_model, "run", run)
        with pytest.raises(KeyboardInterrupt):
            tuning.tune(CONFIG, folder, SPACE, trials=2)
    first, second = (folder / config.folder_name for config in runs)
    assert os.listdir(first) == ["result.json"]
    assert json.loads((second / "progress.json").read_text())["visits"] == 1
    before = (first / "result.json").read_bytes()
    # What it has written of KerasTuner's is of no use to it.
    (folder / "keras_tuner" / "tuner0" / "oracle.json").write_text("{")
    with pytest.raises(FileExistsError, match="not empty.*with --resume"):
        tuning.tune(CONFIG, folder, SPACE, trials=2)

    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda i, _: epochs.append(i))
    with monkeypatch.context() as patched:
        patched.setattr(
            run_hyper_model,
            "run",
            lambda config, callbacks, **options: benchmarks.run(
                config, callbacks=[*callbacks, count], **options
            ),
        )
        resumed = tuning.tune(CONFIG, folder, SPACE, trials=2, resume=True)
    assert epochs == [1]  # The rest of the second.
    assert (first / "result.json").read_bytes() == before
    assert chosen(resumed) == chosen(whole)
    for a, b in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(a.accuracy_matrix, b.accuracy_matrix)

    for other, message in (
        ({"space": {**SPACE, "units": [8, 32]}}, r"choices of units=\[8, 16\] there"),
        ({"tuner": "bayesian"}, "tuner='random' there and tuner='bayesian' here"),
        ({"config": dataclasses.replace(CONFIG, steps=6)}, "steps=5 there and steps=6"),
    ):
        arguments = {"config": CONFIG, "space": SPACE, "trials": 2, **other}
        with pytest.raises(ValueError, match=message):
            tuning.tune(output=folder, resume=True, **arguments)


@pytest.mark.once
def test_hyperband_learns_more_tasks_with_the_best(tmp_path):
    config = PermutedConfig(tasks=3, steps=5, depth=1, units=8)
    space = {"learning_rate": [1e-5, 1e-4, 1e-2]}
    results = tuning.tune(config, tmp_path, space, tuner="hyperband", trials=4)
    tasks = [result.config["tasks"] for result in results]
    assert tasks == [3, 1, 1, 1]
    assert results[0].config["learning_rate"] == 1e-2
    rates = [result.config["learning_rate"] for result in results[1:]]
    assert rates[0] == 1e-2 and sorted(rates) == space["learning_rate"]
    rows = Search.load(tmp_path).rows(results)
    assert rows[1]["trial"] == "learning rate 0.01, tasks 1"
    hypermodel = tuning.RunHyperModel(RotatingConfig(cycles=9), {"units": [8]})
    hp = tuning.run_hyper_model.keras_tuner.HyperParameters()
    hp.values["tuner/epochs"] = 3
    assert hypermodel.config(hp) == RotatingConfig(cycles=3, units=8)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bayesian_optimization_goes_on_from_what_it_found(tmp_path, monkeypatch):
    # A run whose result is told by its config: there is one best.
    def run(config, **options):
        return benchmarks.RunResult(
            **{**result, "config": dataclasses.asdict(config)},
            matrix=[[1 - abs(np.log2(config.units / 64)) / 10]],
        )

    one = dataclasses.replace(CONFIG, tasks=1, units=8, context="identity")
    result = dataclasses.asdict(benchmarks.run(one))
    del result["matrix"]
    monkeypatch.setattr(run_hyper_model, "run", run)
    tried = []
    monkeypatch.setattr(
        tuning.RunHyperModel,
        "fit",
        lambda self, hp, callbacks, fit=tuning.RunHyperModel.fit: (
            tried.append(self.config(hp).units) or fit(self, hp, callbacks=callbacks)
        ),
    )
    space = {"units": [2**i for i in range(12)]}
    tuning.tune(one, tmp_path, space, tuner="bayesian", trials=8)
    distances = np.abs(np.log2(tried) - 6)
    assert len(tried) == 8 and distances[4:].max() < distances[:4].min()


@pytest.mark.once
def test_command_and_report(tmp_path, capsys):
    folder = tmp_path / "search"
    arguments = [*TUNE, *UNITS, "--output", str(folder)]
    assert cli.main([*arguments, "--trials", "1"]) == 0
    assert re.search(r"trial 1 of 1: units (8|16): .* on ave", capsys.readouterr().out)
    # With more trials than there are choices.
    assert cli.main([*arguments, "--trials", "9", "--resume"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"trial [12] of 9: units", out)) == 2
    (best, kept) = re.search(
        r"best of 2: units (\d+): .* task 0, which is (\S+) % of what it was", out
    ).groups()
    (again,) = re.findall(r"again: +keras-psp (.*)", out)
    assert again == f"run permuted --tasks 2 --steps 5 --units {best} --depth 1"
    assert cli.main([*again.split(), "--output", str(tmp_path / "again")]) == 0
    result = benchmarks.RunResult.load(tmp_path / "again")
    (found, worse) = Search.load(folder).results(folder)
    assert result.matrix == found.matrix
    assert kept == f"{100 * result.metrics['retention']:.1f}"
    capsys.readouterr()

    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Search search: best of 2 runs") and "retention" in out
    page = (folder / "report.html").read_text()
    text = (folder / "report.md").read_text()
    for content in (page, text):
        assert "KerasTuner (random) has searched units 8, 16." in content
    best_row, row = re.findall(r"^\| units (.*)", text, re.M)
    assert best_row.startswith(f"{best} | **{100 * found.average_accuracy:.1f}** | ")
    assert f"| {100 * worse.average_accuracy:.1f} | " in row
    (folder / "search.json").write_text("{")
    assert cli.main(["report", str(folder)]) == 0
    assert "left out: The search is damaged: " in capsys.readouterr().out
    assert cli.main([*arguments, "--resume"]) == 2
    assert "search is damaged" in capsys.readouterr().err


@pytest.mark.once
def test_a_failed_trial_is_told_and_the_next_one_run(tmp_path, capsys):
    # The identity has nothing to learn.
    arguments = [*TUNE, "--units", "8", "--trials", "2", "--output", str(tmp_path)]
    arguments += ["--search", "context=identity", "--search", "learnable=true,false"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    what = r"trial \d of 2: context identity, learnable "
    assert re.search(what + r"True: failed: ValueError: .*learn", out)
    assert re.search(what + r"False: \d+\.\d % on average", out)
    assert "best of 1: context identity, learnable False: " in out


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tune", "permuting"], "Did you mean 'permuted'"),
        ([*TUNE, "--tuner", "hyperbend"], "Did you mean 'hyperband'"),
        ([*TUNE, *UNITS, "--trials", "0"], "trials=0"),
        ([*TUNE, *UNITS, "--trials", "1.5"], "invalid int value"),
        ([*TUNE, "--search", "unit=8"], "Did you mean 'units'"),
        ([*TUNE, "--search", "seed=1,2"], "`seed` cannot be searched"),
        ([*TUNE, "--search", "recipe=gram,best"], "`recipe` cannot be searched"),
        ([*TUNE, "--search", "units=8,sixteen"], "'sixteen'"),
        ([*TUNE, "--search", "units=8,-1"], "units=-1"),
        ([*TUNE, "--search", "units=8,8"], "each of them once"),
        ([*TUNE, "--search", "units"], "Received: ''"),
        ([*TUNE, "--search", "context=binary,hadamar"], "Did you mean 'hadamard'"),
        ([*TUNE, "--search", "learnable=maybe"], "'maybe'"),
        ([*TUNE, "--search", "depth=1,2"], "set once, or searched once"),
        ([*TUNE, *UNITS, *UNITS], "set once, or searched once"),
        ([*TUNE, *UNITS, "--batch-size", "100000"], "at most 1438"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse's own.
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.once
def test_bad_space_is_told(tmp_path):
    for space, error, message in (
        ({}, ValueError, "at least one"),
        ({"units": []}, ValueError, "needs choices"),
        ({"units": 8}, TypeError, "must be a list"),
        ({"context": "binary"}, TypeError, "must be a list"),
        ({"learnable": [0, 1]}, TypeError, "True or False"),
        ({"context_over": ["kernel"]}, ValueError, "Unknown hyperparameter"),
    ):
        with pytest.raises(error, match=message):
            tuning.tune(CONFIG, tmp_path / "search", space)
    assert not os.listdir(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        tuning.tune(CONFIG, tmp_path, SPACE, resume=True)


@pytest.mark.once
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_default_space_is_of_the_experiment(name):
    config = EXPERIMENTS[name]()
    hypermodel = tuning.RunHyperModel(config)  # Which checks every choice.
    has = {"incremental": {"width", "context_over"}}.get(name, {"units", "depth"})
    common = {"context", "consolidation", "optimizer", "learning_rate", "schedule"}
    assert hypermodel.space.keys() == has | common


@pytest.mark.once
def test_without_keras_tuner_it_is_named(monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith("keras_psp.tuning")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(keras_psp, "tuning")
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    assert cli.main([*TUNE, *UNITS]) == 2
    assert 'pip install "keras-psp[tune]"' in capsys.readouterr().err


@pytest.mark.once
def test_two_workers_share_a_search(tmp_path, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    folder = tmp_path / "search"
    search = ["--search", "units=4,8", "--search", "learning_rate=1e-3,1e-2"]
    arguments = [*TUNE, *search, "--trials", "4", "--output", str(folder)]
    command = [sys.executable, "-m", "keras_psp.cli", *arguments]
    processes = []
    for name in ("chief", "worker0"):
        with open(tmp_path / name, "w") as out:
            env = {**os.environ, **shared, "KERASTUNER_TUNER_ID": name}
            processes.append(subprocess.Popen(command, env=env, stdout=out))
    try:
        while not [*folder.glob("permuted-*")]:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        for name, value in {**shared, "KERASTUNER_TUNER_ID": "worker1"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="steps=5 there and steps=6 here"):
            tuning.tune(dataclasses.replace(CONFIG, steps=6), folder, {"units": [8]})
        assert cli.main(arguments) == 0
        assert processes[1].wait() == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    here, there = capsys.readouterr().out, (tmp_path / "worker0").read_text()
    numbers = [
        re.findall(r"trial (\d) of 4: .* % on ave", out) for out in (here, there)
    ]
    assert all(numbers)
    assert sorted(numbers[0] + numbers[1]) == ["1", "2", "3", "4"]
    assert "best of 4" in there + here
    assert len(Search.load(folder).results(folder)) == 4
    assert not [*folder.glob(f"*{BACKEND}/progress.json")]
