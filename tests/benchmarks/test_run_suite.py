import importlib
import socket

import numpy as np
import pytest

from keras_psp import benchmarks
from keras_psp.benchmarks import PermutedConfig

SMALL = {"tasks": 2, "steps": 4, "units": 8, "depth": 1}


@pytest.mark.once
def test_runs_on_ray_are_those_of_one_process(tmp_path):
    configs = [PermutedConfig(**SMALL, seed=seed) for seed in range(2)]
    taken = tmp_path / configs[1].folder_name
    benchmarks.run(configs[1], taken)  # It has its result already.
    before = (taken / "result.json").read_bytes()
    bad = PermutedConfig(**{**SMALL, "tasks": 10**9})
    found = {}
    with pytest.raises(ChildProcessError, match="1 of 3 runs failed") as error:
        for config, result in benchmarks.run_suite([*configs, bad], tmp_path, 2):
            found[config.seed] = result
    assert bad.folder_name in str(error.value)
    assert (taken / "result.json").read_bytes() == before
    expected = benchmarks.run(configs[0])
    np.testing.assert_array_equal(found[0].matrix, expected.matrix)
    assert sorted(found) == [0, 1]


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
        module._work(PermutedConfig(**SMALL), str(tmp_path / "run"), wanted)
    assert not list(tmp_path.iterdir())
