import importlib
import pickle
import socket

import numpy as np
import pytest

from keras_psp import benchmarks
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks.register import load_parts

SMALL = {"tasks": 2, "steps": 4, "units": 8, "depth": 1}
PARTS = """
import dataclasses
import os
import signal
import numpy as np
from keras_psp import benchmarks, datasets

rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 6)).astype("float32"), rng.integers(0, 3, 300)
benchmarks.register("source", "numbers", (x, y))


@dataclasses.dataclass(frozen=True)
class Mine(benchmarks.PermutedConfig):
    experiment = "mine"
    shift: int = benchmarks.option(1, "how far seeds are shifted")

    def build_tasks(self):
        return datasets.permuted(self.source, self.tasks, seed=self.seed + self.shift)


benchmarks.register("experiment", "mine", Mine)


@dataclasses.dataclass(frozen=True)
class TooLarge(benchmarks.PermutedConfig):
    experiment = "too-large"

    def build_tasks(self):  # The system kills who is out of memory.
        os.kill(os.getpid(), signal.SIGKILL)


benchmarks.register("experiment", "too-large", TooLarge)
"""


@pytest.mark.once
@pytest.mark.usefixtures("built_in_parts")
def test_runs_on_ray_are_those_of_one_process(tmp_path, monkeypatch):
    module = importlib.import_module("keras_psp.benchmarks.run_suite")
    monkeypatch.setattr(module, "RESTARTS", 1)
    (tmp_path / "parts.py").write_text(PARTS)
    load_parts([tmp_path / "parts.py"])
    mine = benchmarks.EXPERIMENTS["mine"]("numbers", **SMALL, seed=2)
    configs = [PermutedConfig(**SMALL, seed=seed) for seed in range(2)] + [mine, mine]
    taken = tmp_path / configs[1].folder_name
    benchmarks.run(configs[1], taken)  # It has its result already.
    before = (taken / "result.json").read_bytes()
    bad = PermutedConfig(**{**SMALL, "tasks": 10**9})
    killed = benchmarks.EXPERIMENTS["too-large"]("numbers", **SMALL)
    found = {}
    with pytest.raises(ChildProcessError, match="2 of 5 runs failed") as error:
        configs_and_bad = [killed, *configs, bad]
        for config, result in benchmarks.run_suite(configs_and_bad, tmp_path, 2):
            found[config.seed] = result
    assert bad.folder_name in str(error.value)
    assert f"{killed.folder_name}: its worker died 2 times" in str(error.value)
    assert (taken / "result.json").read_bytes() == before
    for seed in (0, 2):
        expected = benchmarks.run(configs[seed])
        np.testing.assert_array_equal(found[seed].matrix, expected.matrix)
    assert sorted(found) == [0, 1, 2]


@pytest.mark.once
def test_an_address_that_does_not_answer(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # Nobody listens.
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="No Ray cluster answers"):
            benchmarks.run_suite([], tmp_path, address=address)
    with pytest.raises(ValueError, match="host and the port"):
        benchmarks.run_suite([], tmp_path, address="somewhere")
    with pytest.raises(ValueError, match="`workers` must be"):
        benchmarks.run_suite([], tmp_path, workers=0)


@pytest.mark.once
def test_a_worker_of_other_versions(tmp_path):
    module = importlib.import_module("keras_psp.benchmarks.run_suite")
    wanted = {**module._important(), "keras": "2.0"}
    with pytest.raises(ValueError, match="other versions"):
        config = pickle.dumps(PermutedConfig(**SMALL))
        module._work(config, pickle.dumps({}), str(tmp_path / "run"), wanted)
    assert not list(tmp_path.iterdir())
