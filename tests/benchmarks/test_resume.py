import dataclasses
import errno
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
SI = dataclasses.replace(SMALL, context="identity", consolidation="si")
CONFIGS = {
    "si": SI,
    "ewc": dataclasses.replace(SI, tasks=3, steps=6, consolidation="ewc"),
    "gram": dataclasses.replace(
        SMALL, tasks=3, steps=6, consolidation="gram", schedule="cosine"
    ),
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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "gram" else [pytest.mark.once])
        for name in CONFIGS
    ],
)
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
run(CONFIGS["si"], output=sys.argv[1], resume=True)
"""


@pytest.mark.once
def test_killed_at_any_moment(tmp_path):
    whole = run(SI)
    folder, here = tmp_path / "run", os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    command = [sys.executable, "-c", RUN, str(folder)]
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and not (folder / "progress.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "result.json" not in os.listdir(folder)
    equal(run(SI, output=folder, resume=True), whole)
    assert os.listdir(folder) == ["result.json"]


@pytest.mark.once
def test_nothing_to_resume_begins_anew(tmp_path):
    config = dataclasses.replace(SMALL, tasks=1)
    equal(run(config, output=tmp_path, resume=True), run(config))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        run(config, output=tmp_path / "mine", resume=True)


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
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


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.once
def test_a_flipped_bit_is_found(tmp_path):
    interrupt(SMALL, tmp_path, 1)
    (weights,) = tmp_path.glob("*.weights.h5")
    progress = tmp_path / "progress.json"
    for path in (weights, progress):
        whole = path.read_bytes()
        # Of the matrix a digit, which leaves the JSON whole.
        digit = whole.find(b'"matrix": {"matrix": [[0.') + len(
            b'"matrix": {"matrix": [[0.'
        )
        for at in [digit] if path == progress else range(3000, len(whole), 5000):
            flip(path, at)
            with pytest.raises(ValueError, match=f"damaged: '.*{path.name}'"):
                run(SMALL, output=tmp_path, resume=True)
            path.write_bytes(whole)
    # An earlier release wrote no hashes.
    content = json.loads(progress.read_text())
    del content["sha256"], content["content_sha256"]
    progress.write_text(json.dumps(content))
    equal(run(SMALL, output=tmp_path, resume=True), run(SMALL))


@pytest.mark.once
def test_weights_of_another_folder_are_not_read(tmp_path):
    interrupt(SMALL, tmp_path, 1)
    progress = tmp_path / "progress.json"
    for changes in (
        {"weights": "../visit-1.weights.h5"},
        {"weights": None},
        {"visits": -1},
        {"visits": "1"},
        {"seconds": None},
        {"config": None},
    ):
        content = {**json.loads(progress.read_text()), **changes}
        content.pop("content_sha256", None)
        damaged = tmp_path / "damaged"
        damaged.mkdir(exist_ok=True)
        (damaged / "progress.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="damaged: .*progress.json"):
            run(SMALL, output=damaged, resume=True)


@pytest.mark.once
def test_a_second_run_is_kept_out_of_the_folder(tmp_path):
    refused = []

    def begin_another(epoch, logs):
        for options in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(FileExistsError, match=f"in use.*process {os.getpid()}"):
                run(SMALL, output=tmp_path, **options)
            refused.append(epoch)

    other = keras.callbacks.LambdaCallback(on_epoch_begin=begin_another)
    config = dataclasses.replace(SMALL, tasks=1, steps=2)
    result = run(config, output=tmp_path, callbacks=[other])
    assert refused == [0, 0, 0]
    assert os.listdir(tmp_path) == ["result.json"]
    equal(run(config, output=tmp_path, resume=True), result)


@pytest.mark.once
def test_what_a_kill_leaves_before_the_first_checkpoint(tmp_path):
    config = dataclasses.replace(SMALL, tasks=1, steps=2)
    whole = run(config)
    left = {
        "lock": (".run.lock",),
        "begun": (".run.lock", ".progress.json.ab12cd_9"),
        "saving": (".visit-1.weights.h5",),
    }
    for name, files in left.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("1 on a machine")
        equal(run(config, output=folder, resume=name != "lock"), whole)
        assert os.listdir(folder) == ["result.json"]
    # Of a run that overwrites another, before its first checkpoint.
    interrupt(SMALL, tmp_path / "lock", 0, overwrite=True)
    assert sorted(os.listdir(tmp_path / "lock")) == ["progress.json", "result.json"]
    with pytest.raises(ValueError, match="tasks=4 there and tasks=1 here"):
        run(config, output=tmp_path / "lock", resume=True)
    equal(run(SMALL, output=tmp_path / "lock", resume=True), run(SMALL))
    assert os.listdir(tmp_path / "lock") == ["result.json"]


@pytest.mark.once
def test_files_of_others_stay(tmp_path):
    config = dataclasses.replace(SMALL, tasks=2, steps=2)
    names = ["my-progress.json", "my-visit-1.weights.h5", "progress.json.bak"]
    for name in names:
        (tmp_path / name).write_text("mine")
    run(config, output=tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [*names, "result.json"]


@pytest.fixture(scope="module")
def two_tasks():
    config = dataclasses.replace(SMALL, tasks=2, steps=2)
    return config, run(config)


@pytest.mark.once
@pytest.mark.parametrize(
    "operation, full_at",
    # The lock; the beginning, the checkpoint's two files, the result.
    [("write", 0), ("fsync", 2), ("fsync", 5), ("replace", 3), ("save_weights", 0)],
)
def test_a_disk_that_is_full_at_any_write(
    operation, full_at, two_tasks, tmp_path, monkeypatch
):
    config, whole = two_tasks
    owner = keras.Model if operation == "save_weights" else os
    works, calls = getattr(owner, operation), []

    def fail(*args, **kwargs):
        calls.append(operation)
        if len(calls) == full_at + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, operation, fail)
    with pytest.raises(OSError, match="No space left"):
        run(config, output=tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    equal(run(config, output=tmp_path, resume=True), whole)
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.once
def test_killed_at_file_operations():
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "kills.py")]
    done = subprocess.run([*command, "--kills", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 matrices are equal" in done.stdout


@pytest.mark.once
def test_a_suite_is_made_of_different_runs_that_compare():
    for name, configs in benchmarks.SUITES.items():
        assert len({config for config in configs}) == len(configs), name
        assert len({config.name for config in configs}) == len(configs), name
