import dataclasses
import os

import numpy as np
import pytest

from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import report


def make_result(num_tasks, context="binary", **config):
    matrix = [
        [0.9 - 0.01 * (i - j) if j <= i else None for j in range(num_tasks)]
        for i in range(num_tasks)
    ]
    fields = dataclasses.asdict(PermutedConfig(context=context, steps=100, **config))
    return RunResult(
        experiment="permuted",
        config=fields,
        seed=0,
        versions={"keras": "3"},
        backend="jax",
        device={"name": "cpu:0", "platform": "here", "cpus": 2},
        jit_compile=True,
        contexts={
            "bits_per_task": 800,
            "numbers_per_task": 100,
            "orthogonality_drift": 0.25,
        },
        examples={"train": [[9, 9]] * num_tasks, "test": [[5, 5]] * num_tasks},
        timings={
            "train_seconds": [9.0] + [0.2] * (num_tasks - 1),
            "test_seconds": [0.1] * num_tasks,
            "total_seconds": 10.0,
        },
        matrix=matrix,
    )


def save(folder, result):
    folder.mkdir(parents=True)
    result.save(folder)
    return folder


def test_table(tmp_path):
    one = save(tmp_path / "one", make_result(11))
    two = save(tmp_path / "two", make_result(3, "identity"))
    three = save(tmp_path / "three", make_result(1, learnable=True))
    rows, paths = report([one, two / "result.json", str(three)])
    assert rows[0] == {
        "run": "one",
        "context": "binary",
        "tasks": "11",
        "average %": "85.0",
        "task 0 %": "80.0",
        "just trained %": "90.0",
        "forgetting %": "5.5",
        "backward transfer %": "-5.5",
        "bits/task": "800",
        "drift": "2.5e-01",
        "backend": "jax",
        "ms/step": "2.00",
    }
    assert rows[1]["context"] == "identity"
    assert rows[2]["context"] == "binary, learned"
    complex_valued = save(tmp_path / "four", make_result(2, complex_valued=True))
    assert report([complex_valued])[0][0]["context"] == "binary, complex network"
    assert rows[2]["ms/step"] == "90.00"  # The only task it has.
    assert [os.path.relpath(path, tmp_path) for path in paths] == [
        "report.md",
        "retention.png",
        "matrices.png",
    ]
    text = paths[0].read_text()
    for row in rows:
        assert "| " + " | ".join(row.values()) + " |" in text
    assert "learning_rate=0.0001" in text and "keras 3" in text


@pytest.mark.parametrize("sizes", [(50,), (2, 3), (1,), (4,) * 4])
def test_plots_are_pictures(tmp_path, sizes):
    from matplotlib.image import imread

    runs = [save(tmp_path / str(i), make_result(n)) for i, n in enumerate(sizes)]
    _, paths = report(runs, output=tmp_path / "made" / "here")
    for path in paths[1:]:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
    assert sorted(os.listdir(tmp_path / "made" / "here")) == [
        "matrices.png",
        "report.md",
        "retention.png",
    ]


def test_one_run_is_reported_beside_itself(tmp_path):
    run = save(tmp_path / "run", make_result(2))
    rows, paths = report([run])
    assert rows[0]["run"] == "run" and {path.parent for path in paths} == {run}
    report([run])  # A report is made from results and may be made again.


def test_bad_runs(tmp_path):
    run = save(tmp_path / "run", make_result(2))
    with pytest.raises(ValueError, match="at least one run"):
        report([])
    with pytest.raises(ValueError, match="named once"):
        report([run, run / "result.json"])
    with pytest.raises(FileNotFoundError, match="other"):
        report([run, tmp_path / "other"])
    (run / "result.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        report([run])
    assert os.listdir(run) == ["result.json"]
