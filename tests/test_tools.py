"""The tools that make the README's tables."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BACKEND

from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import run

TOOLS = Path(__file__).parent.parent / "tools"


def call(tool, *arguments):
    done = subprocess.run(
        [sys.executable, str(TOOLS / tool), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cost_compares_with_plain_dense(tmp_path):
    output = tmp_path / "cost.json"
    sizes = "--units 8 --inputs 8 --batch-size 16 --layers 1 --rounds 2".split()
    families = ("--families", "binary")
    table = call(
        "cost.py", "--output", output, "--backends", BACKEND, *sizes, *families
    )
    assert "| binary | " in table
    done = json.loads(output.read_text())["layers"][BACKEND]
    assert done["seed"] == 0 and done["versions"]["keras"] and done["device"]["name"]
    rows = done["times"]
    assert len(rows) == 2 * 2 * 2 and all(len(row["ms"]) == 2 for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["name"] == "plain")
    again = call("cost.py", "--output", output, "--markdown")
    assert again == table


def test_cost_of_consolidation_counts_every_step(tmp_path):
    output = tmp_path / "cost.json"
    options = ("--consolidation", "--backends", BACKEND, "--rounds", 1)
    call("cost.py", "--output", output, *options)
    rows = json.loads(output.read_text())["consolidation"][BACKEND]["times"]
    assert [row["name"] for row in rows] == ["plain", "ewc", "si", "gram"]
    # One in 50 of Gram's steps costs more: as many of these are in each time.
    assert all(row["calls"] % 50 == 0 for row in rows)


def test_families_table_is_made_of_results(tmp_path):
    settings = {"source": "mnist", "steps": 3, "units": 256, "depth": 3}
    result = run(PermutedConfig(tasks=10, steps=3, units=8, depth=1))
    for seed in (1, 2):
        config = {**result.config, **settings, "seed": seed}
        folder = tmp_path / f"10-tasks-binary-seed-{seed}"
        folder.mkdir()
        content = {**vars(result), "config": config, "seed": seed}
        (folder / "result.json").write_text(json.dumps(content))
    table = call(
        "families.py",
        *("--output", tmp_path, "--backend", BACKEND, "--steps", 3, "--report-only"),
    )
    assert (tmp_path / "families.md").read_text() in table
    accuracy = f"{100 * result.average_accuracy:.1f} ± 0.0 (n=2)"
    bits = result.contexts["bits_per_task"]
    row = next(line for line in table.splitlines() if line.startswith("| binary | fix"))
    assert row.split(" | ")[2] == accuracy
    assert row.split(" | ")[4:7] == ["—", "—", str(bits)]
    assert "| hadamard | fixed | — |" in table  # Nothing is made up.


def test_merge_compares_with_its_rivals(tmp_path):
    output = tmp_path / "merge.json"
    sizes = "--source digits --tasks 2 --units 8 --epochs 1 --examples 20".split()
    options = ("--families", "binary", "--storage", "bits")
    call("merge.py", "--output", output, *sizes, *options)
    (done,) = json.loads(output.read_text())
    assert done["backend"] == BACKEND and done["versions"]["keras"]
    systems = done["systems"]
    assert len(systems) == 10
    assert all(len(each["accuracies"]) == 2 for each in systems.values())
    size = systems["the base alone"]["numbers"]
    assert systems["fine-tuned networks"]["numbers"] == 2 * size
    assert 2 * size < systems["superposed, binary"]["numbers"] < 2.3 * size
    table = call("merge.py", "--output", output, "--report", tmp_path / "merge")
    fitted = systems["RegMean, 20 examples"]
    assert f"| {100 * sum(fitted['accuracies']) / 2:.1f} |" in table
    assert (tmp_path / "merge.md").read_text() in table
    assert (tmp_path / "merge.png").read_bytes()


def test_infer_counts_the_tasks_found(tmp_path, monkeypatch, capsys):
    output = tmp_path / "infer.json"
    sizes = "--source digits --tasks 2 --steps 100 --units 256 --images 64".split()
    monkeypatch.setattr(sys, "argv", ["infer.py", "--output", str(output), *sizes])
    runpy.run_path(str(TOOLS / "infer.py"), run_name="__main__")
    said = capsys.readouterr().out
    done = json.loads(output.read_text())
    assert done["backend"] == BACKEND and done["seed"] == 0 and done["device"]["name"]
    assert done["config"]["tasks"] == 2 and done["average_accuracy"] > 0.5
    for method in ("entropy", "energy", "gradient"):
        found = done["found"][method]
        assert 0.5 < found["example"] <= 1 and found["batch"] * 4 % 1 == 0
        assert f"{method}: {100 * found['example']:.1f} % of images" in said


def test_exact_compares_with_the_original(tmp_path):
    output = tmp_path / "exact.json"
    only = ("--only", "convert, Transformer")
    table = call("exact.py", "--output", output, "--backends", BACKEND, *only)
    done = json.loads(output.read_text())[BACKEND]
    assert done["seed"] == 0 and done["versions"]["keras"] and done["device"]["name"]
    ((name, found),) = done["differences"].items()
    assert found["spread"] > 0.1 and found["learned"] > 1e-4
    for what in ("each task", "extract"):
        assert len(found[what]) == 3 and max(found[what]) < 1e-5
        assert f"| {name}: {what} | {max(found[what]):.3g} |" in table
    assert found["file"] < 1e-5 and found["weights changed by a fit step"] > 20


@pytest.mark.skipif(BACKEND != "tensorflow", reason="It always is on TensorFlow.")
def test_serving_compares_one_model_with_many(tmp_path):
    output = tmp_path / "serving.json"
    arguments = ("--output", output, "--folder", tmp_path, "--tasks", 2)
    arguments += ("--models", "MLP 784-1024-1024-10")
    call("serving.py", *arguments, "--export")
    table = call("serving.py", *arguments, "--rounds", 2, "--requests", 32)
    assert "requests a second, batch 32 | " in table
    (done,) = json.loads(output.read_text()).values()
    assert done["difference"] < 1e-5 and done["backend"] == "tensorflow"
    one, many = done["systems"]["one"], done["systems"]["many"]
    assert 1.8 < many["disk"][0] / one["disk"][0] < 2
    assert all(s["rss_loaded"] - s["rss_before"] > 7e6 for s in (one, many))
    for rounds in done["requests_per_second"].values():
        assert all(len(values) == 2 and min(values) > 0 for values in rounds.values())
    assert call("serving.py", "--output", output, "--markdown") == table
