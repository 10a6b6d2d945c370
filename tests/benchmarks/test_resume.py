import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_psp import benchmarks
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RotatingConfig
from keras_psp.benchmarks import run

SMALL = PermutedConfig(tasks=4, steps=20, units=16, depth=1, learning_rate=1e-3)
EWC = dataclasses.replace(SMALL, context="identity", consolidation="ewc")
CONFIGS = {
    "ewc": EWC,
    "gram": dataclasses.replace(SMALL, consolidation="gram", schedule="cosine"),
    "separate": dataclasses.replace(SMALL, separate=True),
    "rotating": RotatingConfig(
        **{"tasks": 3, "steps": 10, "cycles": 2, "units": 16, "depth": 1},
        **{"learning_rate": 1e-3, "assignment": "random"},
    ),
}


class Stop(keras.callbacks.Callback):
    """Fails where a visit ends, before anything is made of it."""

    def __init__(self, visit):
        super().__init__()
        self.visit = visit

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.visit:
            raise KeyboardInterrupt


def interrupt(config, folder, visit, **options):
    with pytest.raises(KeyboardInterrupt):
        run(config, output=folder, callbacks=[Stop(visit)], **options)


def equal(a, b):
    np.testing.assert_array_equal(a.accuracy_matrix, b.accuracy_matrix)
    assert a.ahead == b.ahead


@pytest.mark.parametrize("name", CONFIGS)
def test_the_matrix_is_as_if_nothing_had_happened(name, tmp_path):
    config = CONFIGS[name]
    whole = run(config)
    interrupt(config, tmp_path, 2)
    assert json.loads((tmp_path / "progress.json").read_text())["visits"] == 2
    assert sorted(os.listdir(tmp_path)) == ["progress.json", "visit-2.weights.h5"]
    seen = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda i, _: seen.append(i))
    resumed = run(config, output=tmp_path, resume=True, callbacks=[count])
    assert seen == list(range(2, config.num_visits))
    equal(resumed, whole)
    assert len(resumed.timings["train_seconds"]) == config.num_visits
    assert os.listdir(tmp_path) == ["result.json"]
    # It has its result.
    again = run(config, output=tmp_path, resume=True, callbacks=[Stop(0)])
    equal(again, whole)


RUN = """
import sys
from test_resume import CONFIGS
from keras_psp.benchmarks import run
run(CONFIGS["ewc"], output=sys.argv[1], resume=True)
"""


def test_killed_at_any_moment(tmp_path):
    whole = run(EWC)
    folder, here = tmp_path / "run", os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    command = [sys.executable, "-c", RUN, str(folder)]
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and not (folder / "progress.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "result.json" not in os.listdir(folder)
    equal(run(EWC, output=folder, resume=True), whole)
    assert os.listdir(folder) == ["result.json"]


def test_nothing_to_resume_begins_anew(tmp_path):
    config = dataclasses.replace(SMALL, tasks=1)
    equal(run(config, output=tmp_path, resume=True), run(config))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        run(config, output=tmp_path / "mine", resume=True)


def test_without_resume_it_begins_anew(tmp_path):
    interrupt(SMALL, tmp_path, 2)
    with pytest.raises(FileExistsError, match="not empty"):
        run(SMALL, output=tmp_path)
    # What a kill may have left beside.
    (tmp_path / ".visit-3.weights.h5").touch()
    (tmp_path / ".progress.json.abc").touch()
    config = dataclasses.replace(SMALL, seed=1, tasks=2)
    equal(run(config, output=tmp_path, overwrite=True), run(config))
    assert os.listdir(tmp_path) == ["result.json"]


def test_another_config_is_told_by_its_fields(tmp_path):
    interrupt(SMALL, tmp_path, 1)
    other = dataclasses.replace(SMALL, steps=21, seed=3)
    with pytest.raises(ValueError, match="steps=20 there and steps=21 here, seed=0"):
        run(other, output=tmp_path, resume=True)
    run(SMALL, output=tmp_path, resume=True)
    with pytest.raises(ValueError, match="steps=20 there and steps=21 here, seed=0"):
        run(other, output=tmp_path, resume=True)
    with pytest.raises(ValueError, match="`resume` needs an `output`"):
        run(SMALL, resume=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"visits": 1}'])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    interrupt(SMALL, tmp_path, 1)
    progress = tmp_path / "progress.json"
    whole = progress.read_bytes()
    progress.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: .*progress.json"):
        run(SMALL, output=tmp_path, resume=True)
    no_matrix = {**json.loads(whole), "matrix": {"matrix": [[1]]}}
    progress.write_text(json.dumps(no_matrix))
    with pytest.raises(ValueError, match="damaged: .*progress.json"):
        run(SMALL, output=tmp_path, resume=True)
    progress.write_bytes(whole)
    (weights,) = tmp_path.glob("*.weights.h5")
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: .*visit-1.weights.h5"):
        run(SMALL, output=tmp_path, resume=True)
    weights.unlink()
    with pytest.raises(ValueError, match="damaged: .*visit-1.weights.h5"):
        run(SMALL, output=tmp_path, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    interrupt(SMALL, tmp_path, 2)
    before = sorted(os.listdir(tmp_path))

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            run(SMALL, output=tmp_path, resume=True)
    assert json.loads((tmp_path / "progress.json").read_text())["visits"] == 2
    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "save_weights", fail)
        with pytest.raises(OSError, match="No space left"):
            run(SMALL, output=tmp_path, resume=True)
    assert set(before) <= set(os.listdir(tmp_path))
    equal(run(SMALL, output=tmp_path, resume=True), run(SMALL))
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_suite_is_made_of_different_runs_that_compare():
    for name, configs in benchmarks.SUITES.items():
        assert len({config for config in configs}) == len(configs), name
        assert len({config.name for config in configs}) == len(configs), name
