"""`tools/measure.py`, which measures what the READMEs say and writes their tables."""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKEND

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "keras_psp").glob("*/*.md")),
    ROOT / "examples" / "tenants" / "README.md",
]


def call(*arguments, status=0, backend=BACKEND):
    """Returns what a command printed, in this process: an import takes longest."""
    command = [str(ROOT / "tools" / "measure.py"), *map(str, arguments)]
    # What starts processes of its own may leave settings for them behind.
    if backend != BACKEND or "--backends" in command or "tenants" in command:
        done = subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        return done.stdout
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        patch.syspath_prepend(str(ROOT / "tools"))
        patch.setattr(sys, "argv", command)
        try:
            importlib.import_module("measure").main()
            found = 0
        except SystemExit as stop:
            # A message stands for 1.
            found = 1 if isinstance(stop.code, str) else stop.code
    assert found == status, printed.getvalue()
    return printed.getvalue()


def measure(folder, name, *arguments, backend=BACKEND):
    """Returns the result that a command has written, and what it printed."""
    printed = call(*arguments, "--output", folder, backend=backend)
    result = json.loads((folder / f"{name}.json").read_text())
    check_form(result)
    assert result["provenance"] == "measured"
    assert result["environment"]["versions"]["keras"]
    assert result["environment"]["device"]["name"]
    assert str(folder) not in result["command"]
    return result, printed


def check_form(result):
    keys = "what provenance command date seed config environment rows".split()
    assert set(keys) <= set(result)
    assert result["rows"] and result["environment"]["backend"]


def test_cost_compares_with_plain_dense(tmp_path):
    sizes = "--units 8 --inputs 8 --batch-size 16 --layers 1 --rounds 2".split()
    options = ("cost", "layers", "--backends", BACKEND, "--families", "binary", *sizes)
    result, printed = measure(tmp_path, f"cost-layers-{BACKEND}", *options)
    rows = result["rows"]
    assert len(rows) == 2 * 2 * 2 and all(len(row["ms"]) == 2 for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["name"] == "plain")
    ratios = [row["ratio"] for row in rows if row["name"] == "binary"]
    assert "| binary | " + " | ".join(f"{x:.2f}" for x in ratios) + " |" in printed


def test_cost_of_consolidation_counts_every_step(tmp_path):
    options = ("cost", "consolidation", "--rounds", 1)
    result, _ = measure(tmp_path, f"cost-consolidation-{BACKEND}", *options)
    names = ["plain", "ewc", "si", "gram", "gram, rank 4", "gram, rank 4, 50 tasks"]
    assert [row["name"] for row in result["rows"]] == names
    # One in 50 of Gram's steps costs more: as many of these are in each time.
    assert all(row["calls"] % 50 == 0 for row in result["rows"])


def test_growth_builds_what_is_not_too_large(tmp_path):
    sizes = "--tasks 1 4 16 --widths 8 16 --width 8 --fixed 4 --batch-size 8".split()
    options = ("growth", *sizes, "--most", 2000, "--rounds", 1)
    result, printed = measure(tmp_path, f"growth-{BACKEND}", *options)
    rows = {(r["over"], r[r["over"]], r["layer"]): r for r in result["rows"]}
    assert len(rows) == (3 + 2) * 4
    few, many = (rows["tasks", k, "own"] for k in (4, 16))
    assert many["extrapolated"] and many["bytes"] == 16 * 4 * 8 * 8
    assert many["forward, mixed"] == few["forward, mixed"]
    assert many["training, one"] == 4 * few["training, one"]
    assert rows["width", 16, "bits"]["bytes"] == 4 * 16 * 16 + 4 * 2
    assert "| 0.0041 (not built) |" in printed


@pytest.mark.skipif(BACKEND != "torch", reason="Two processes of torch's.")
def test_devices_compares_with_one(tmp_path):
    result, printed = measure(tmp_path, f"devices-{BACKEND}", "devices", "mlp-ewc")
    (row,) = result["rows"]
    assert row["unknown_alone"] and max(row["losses"], row["weights"]) < 1e-5
    assert "| DistributedDataParallel, 2 processes | mlp, float32 | `EWC` |" in printed


def test_stack_trains_as_alone_and_has_a_curve(tmp_path):
    options = ("stack", "--tasks", 12, "--rounds", 1, "--models", 1)
    result, printed = measure(tmp_path, f"stack-{BACKEND}", *options)
    ours, *others = result["rows"]
    assert ours["ratio"] == 1 and all(row["seconds"] > 0 for row in others)
    assert result["config"]["equal"]["largest_difference"] < 1e-4
    assert f"| 1 ({ours['seconds']:.2f} s) |" in printed
    options = ("stack", "--part", "curve", "--sizes", 2, 3, "--rounds", 1)
    result, _ = measure(tmp_path, f"stack-curve-{BACKEND}", *options)
    small, large = result["rows"]
    assert small["bytes"] * 3 == large["bytes"] * 2


@pytest.mark.once
def test_gpu_compares_with_plain_networks(tmp_path):
    images = "--images 8 --resnet-width 0.0625 --rounds 1".split()
    texts = "--texts 2 --length 4 --layers 1 --units 8".split()
    result, printed = measure(tmp_path, f"gpu-{BACKEND}", "gpu", *images, *texts)
    assert "on a CPU" in printed and len(result["rows"]) == 2 * 3 * 2 * 2
    for row in result["rows"]:
        count = 8 if row["network"] == "ResNet18" else 2 * 4
        assert row["per_second"] == pytest.approx(1000 * count / row["median_ms"])


def test_families_are_run_once(tmp_path):
    given = "source=digits steps=3 units=8 depth=1".split()
    options = ("--networks", "binary", "powers-learned", "--tasks", 3, "--seeds", 1, 2)
    options += ("--with", *given, "--runs", tmp_path / "runs")
    name = f"families-3-tasks-{BACKEND}"
    result, printed = measure(tmp_path, name, "families", *options)
    assert result["seed"] == [1, 2]
    assert [len(row["matrix"]) for row in result["rows"]] == [3] * 4
    binary = [row for row in result["rows"] if row["config"]["context"] == "binary"]
    averages = [sum(row["matrix"][-1]) / 3 for row in binary]
    row = next(line for line in printed.splitlines() if line.startswith("| binary |"))
    cells = row.split(" | ")
    assert cells[1] == "fixed" and cells[2].startswith(f"{sum(averages) / 2:.1f} ± ")
    assert cells[2].endswith("(n=2)") and int(cells[4]) == 8 * (64 + 8)
    again, _ = measure(tmp_path, name, "families", *options)
    assert again["rows"] == result["rows"]  # Times too: nothing was run.


def test_runs_are_added_to_a_result(tmp_path):
    name = f"families-2-tasks-{BACKEND}"
    given = "source=digits steps=3 units=8 depth=1".split()
    options = ("families", "--networks", "binary", "--tasks", 2, "--with", *given)

    def run(seed, *more):
        return measure(tmp_path, name, *options, "--seeds", seed, *more)[0]

    first = run(1)
    second = run(0, "--resume")
    assert second["seed"] == [0, 1] and second["rows"][0] == first["rows"][0]
    assert second["command"].startswith(f"{first['command']}; then ")
    assert run(1, "--resume") == second  # Times too: nothing was run.
    path = tmp_path / f"{name}.json"
    older = json.loads(path.read_text())
    del older["rows"][0]["config"]["part_bits"]  # An option of later versions.
    path.write_text(json.dumps(older))
    assert run(1, "--resume") == older
    third, printed = measure(tmp_path, name, *options, "--seeds", 2, "--resume")
    assert len(third["rows"]) == 3 and "(n=3)" in printed  # One system.
    other = path.read_text().replace('"numpy": "', '"numpy": "0.')
    path.write_text(other)
    seed = ("--seeds", 2, "--resume", "--output", tmp_path)
    call(*options, *seed, status=1)  # Rows of other versions would be called these.
    assert path.read_text() == other
    assert run(1)["seed"] == [1]


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_merge_compares_with_its_rivals(tmp_path):
    sizes = "--source digits --tasks 2 --units 8 --epochs 1 --examples 20".split()
    options = ("merge", *sizes, "--families", "binary", "--storage", "bits")
    result, printed = measure(tmp_path, f"merge-mlp-2-tasks-{BACKEND}", *options)
    rows = {(row["system"], row["examples"]): row for row in result["rows"]}
    assert len(rows) == 10
    assert all(len(row["accuracy"]) == 2 for row in rows.values())
    assert rows["the base alone", 0]["memory"] == 1
    assert rows["fine-tuned networks", 0]["memory"] == 2
    assert 2 < rows["superposed, binary", 0]["memory"] < 2.3
    accuracy = sum(rows["RegMean", 20]["accuracy"]) / 2
    assert f"| RegMean, 20 examples | {accuracy:.1f} |" in printed


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_frontier_compares_with_its_rivals(tmp_path):
    sizes = "--source digits --tasks 2 --units 8 --epochs 1 --examples 20".split()
    options = ("frontier", *sizes, "--budgets", 0.1, 0.6, "--most", 0.3)
    options += ("--folder", tmp_path / "networks", "--runs", tmp_path / "runs")
    name = f"frontier-mlp-2-tasks-{BACKEND}"
    result, printed = measure(tmp_path, name, *options)
    rows = {(row["system"], row["size"]): row for row in result["rows"]}
    tuned = rows["fine-tuned networks", ""]
    assert tuned["memory"] == 2
    assert tuned["share"] == tuned["way"] == tuned["agreement"] == 100
    assert rows["the base, own heads", ""]["way"] == 0
    ours = rows["superpose(budget=)", "0.6"]
    assert 0.5 < ours["memory"] <= 0.6
    assert ("superpose(budget=)", "0.1") not in rows  # It is too small.
    assert {"copies", "RegMean"} <= {system for system, _ in rows}
    line = next(x for x in printed.splitlines() if x.startswith("| superpose(budget=)"))
    assert line.split(" | ")[6] == f"{ours['share']:.2f} ({ours['way']:.2f})"
    again, _ = measure(tmp_path, name, *options)
    assert again["rows"] == result["rows"]  # Nothing was kept anew.


# Models this small may answer as their base does.
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
def test_text_keeps_what_tells_changed_passages_apart(tmp_path):
    import keras_hub

    words = "the film was a very good and long story of some old men in town".split()
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=5 + len(words),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=32,
    )
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    backbone.save_to_preset(tmp_path / "weights")
    tokenizer = keras_hub.models.BertTokenizer(vocabulary)
    tokenizer.save_to_preset(tmp_path / "weights")
    (tmp_path / "texts" / "news").mkdir(parents=True)
    for i in range(6):
        article = " ".join(words[i:] + 3 * words)
        (tmp_path / "texts" / "news" / f"{i}.txt").write_text(article)
    folders = ("--weights", tmp_path / "weights", "--texts", tmp_path / "texts")
    sizes = "--tasks 2 --steps 2 --tests 8 --examples 8 --budgets 1.5".split()
    options = ("text", *folders, *sizes, "--systems", "superpose(budget=)", "copies")
    options += ("--most", 0.7, "--folder", tmp_path / "models")
    result, printed = measure(tmp_path, f"frontier-minilm-2-tasks-{BACKEND}", *options)
    ours = next(row for row in result["rows"] if row["system"] == "superpose(budget=)")
    assert ours["memory"] <= 1.5 and 0 <= ours["accuracy"] <= 100
    assert "copies" in {row["system"] for row in result["rows"]}
    assert "two words repeated" not in printed  # There are two tasks.
    assert len(list((tmp_path / "models").iterdir())) == 2


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
def test_images_of_a_network_of_pytorch(monkeypatch, tmp_path):
    import torch

    from keras_psp.datasets import Source

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    images = importlib.import_module("_measure.images")
    rng, weights = np.random.default_rng(0), {}
    kernels = {"_conv_stem": (32, 3, 3, 3), "_depthwise": (32, 1, 3, 3)}
    kernels |= {"_project": (16, 32, 1, 1), "_conv_head": (1280, 16, 1, 1)}
    for name, shape in kernels.items():
        weights[name] = torch.tensor(0.1 * rng.normal(size=shape).astype("float32"))
        for part in ("weight", "bias", "mean", "var"):
            weights[f"{name}_bn.{part}"] = torch.ones(shape[0])
        weights[f"{name}_bn.count"] = torch.tensor(1)
    torch.save({**weights, "_fc.weight": torch.ones(1000, 1280)}, tmp_path / "w.pth")
    labels = np.repeat(np.arange(10, 20, dtype="int32"), 4)
    x = rng.integers(0, 256, size=(40, 8, 8, 3)).astype("uint8")
    source = Source("cifar100", x, labels, x, labels)
    monkeypatch.setattr(images, "BLOCKS", images.BLOCKS[:1])
    monkeypatch.setattr(images.datasets, "load_source", lambda name: source)
    base = images.build_base(tmp_path / "w.pth", 16)
    kernel = base.get_layer(index=4).get_weights()[0]  # The depthwise one.
    found = weights["_depthwise"].numpy()
    np.testing.assert_array_equal(kernel, found.transpose(2, 3, 0, 1))
    sizes = "--tasks 2 --size 16 --epochs 1 --batch-size 10 --budgets 1.5".split()
    options = ("images", "--weights", tmp_path / "w.pth", *sizes, "--most", 0.2)
    options += ("--systems", "superpose(budget=)")
    result, _ = measure(tmp_path, f"frontier-lite0-2-tasks-{BACKEND}", *options)
    _, ours = result["rows"]
    assert ours["memory"] <= 1.5 and 0 <= ours["accuracy"] <= 100


def test_a_network_that_has_learned_other_images(monkeypatch):
    from keras_psp.datasets import Source

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    images = importlib.import_module("_measure.images")
    x = np.random.default_rng(0).integers(0, 256, size=(20, 8, 8, 3)).astype("uint8")
    labels = np.arange(20, dtype="int32") % 10
    source = Source("cifar10", x, labels, x, labels)
    monkeypatch.setattr(images.datasets, "load_source", lambda name: source)
    learned = []
    read = images.frontier.read_or_train
    monkeypatch.setattr(
        images.frontier,
        "read_or_train",
        lambda folder, name, model, train: (
            learned.append(model),
            read(folder, name, model, train),
        ),
    )
    sizes = {"size": 8, "width": 0.0625, "batch_size": 10, "base_epochs": 1}
    base = images.read_resnet18(argparse.Namespace(folder=None, **sizes), 0)
    *ours, kernel, _ = base.get_weights()
    for mine, known in zip(ours, learned[0].get_weights(), strict=False):
        np.testing.assert_array_equal(mine, known)
    assert kernel.shape[1] == images.CLASSES and len(ours) > 20


def test_frontier_measures_what_superpose_makes(monkeypatch):
    import keras

    import keras_psp

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    frontier = importlib.import_module("_measure.frontier")
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, name="a")])
    models = [keras.models.clone_model(base) for _ in range(3)]
    x = np.random.default_rng(0).normal(size=(30, 6)).astype("float32")
    networks = frontier.Networks(models, base, [x] * 3, lambda k: (x, np.arange(30)))
    memory = networks.superpose(1.9)
    one = keras_psp.superpose(models, base=base, data=[x] * 3, budget=1.9)
    total = keras_psp.diagnostics.memory(one).total
    assert memory == total / (4 * base.count_params())
    for k in range(3):
        (name,) = set(one.input) - {"task"}
        ours = one.predict({name: x, "task": np.full(30, k)}, verbose=0)
        here = networks._walk.plain(k).predict(x, verbose=0)
        np.testing.assert_allclose(ours, here, atol=1e-5)


class Toy:
    """Three small dense networks, each a layer of 40 x 30 and one of 30 x 12."""

    def __init__(self, rng):
        self.inputs = rng.normal(size=(3, 64, 40)) * np.geomspace(0.1, 2, 40)
        self.layers = [ToyLayer(self, rng, 40, 30), ToyLayer(self, rng, 30, 12)]

    def outputs(self, own, end=2):
        x = self.inputs
        for layer in self.layers[:end]:
            x = np.maximum(x @ (layer.kernels if own else layer.kept), 0)
        return x

    def agreement(self):
        same = self.outputs(True).argmax(-1) == self.outputs(False).argmax(-1)
        return same.mean(1)


class ToyLayer:
    def __init__(self, network, rng, m, n):
        self.network = network
        self.base = rng.normal(size=(m, n))
        self.kernels = self.base + 0.2 * rng.normal(size=(3, m, n))
        self.kept = self.kernels

    def wanted(self, compressed):
        from keras_psp.surgery._parts import Wanted

        place = self.network.layers.index(self)
        x = self.network.outputs(not compressed, place)
        gram = np.swapaxes(x, 1, 2) @ x / 64
        return Wanted(self.kernels, gram + 0.01 * np.eye(gram.shape[-1]))

    def keep(self, kernels):
        self.kept = kernels


def test_rivals_keep_kernels_in_the_bits_that_they_tell(rng, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    rivals = importlib.import_module("_measure.rivals").rivals
    errors, sizes = {}, {}
    for rival in rivals(3, most=100):
        toy = Toy(np.random.default_rng(0))
        bits = sizes[rival.system, rival.size] = rival.keep(toy)
        assert all(layer.kept.shape == layer.kernels.shape for layer in toy.layers)
        error = np.square(toy.outputs(False) - toy.outputs(True)).mean()
        errors.setdefault(rival.system, []).append((bits, error))
    numbers, columns = 40 * 30 + 30 * 12, 30 + 12
    base = {32: 32 * numbers, 8: 8 * numbers + 32 * columns}

    def few(bits):
        return bits * numbers + 32 * columns

    hand = {
        ("the base, own heads", ""): 32 * (40 * 30 + 3 * 30 * 12),
        ("copies", "3 bits"): 3 * few(3),
        ("copies, error feedback", "2 bits"): 3 * few(2),
        ("differences", "2 bits, base in 8 bits"): base[8] + 3 * few(2),
        ("BitDelta", "scale by kernel, base in 32 bits"): base[32]
        + 3 * (numbers + 32 * 2),
        ("BitDelta", "scale by data, base in 8 bits"): base[8] + 3 * few(1),
        # Half are 0: one bit says so, and half of the numbers have a sign.
        ("T-Switch", "50% dropped, scale by kernel, base in 32 bits"): base[32]
        + 3 * (1.5 * numbers + 32 * 2),
        # Ranks of 5 and 2: as many numbers as 1200 and 360, in three of 70 r and 42 r.
        ("TSV-C (SVD)", "1 networks, base in 32 bits"): base[32]
        + 3 * 32 * (5 * 70 + 2 * 42),
        # Ranks of 11 and 5: a quarter of the numbers, in an eighth of the bits.
        ("SVD in 4 bits", "0.25 networks, base in 8 bits"): base[8]
        + 3 * (11 * (4 * 70 + 32) + 5 * (4 * 42 + 32)),
        # Ranks of 11 and 6: 1200 of 70 r + 3 r^2, and 360 of 42 r + 3 r^2.
        ("joint diagonalization, full cores", "1 networks, base in 32 bits"): base[32]
        + 32 * (11 * 70 + 3 * 11**2 + 6 * 42 + 3 * 6**2),
        # Ranks of 16 and 8: 1200 of 73 r, and 360 of 45 r.
        ("joint diagonalization, diagonal cores", "1 networks, base in 8 bits"): base[8]
        + 32 * (16 * 73 + 8 * 45),
        ("RTVQ", "3 + 2 bits, base in 32 bits"): base[32] + few(3) + 3 * few(2),
        ("EMR", "both in 32 bits"): 2 * base[32] + 3 * numbers + 3 * 32,
        ("TALL masks", "both in 8 bits"): 2 * base[8] + 3 * numbers,
        ("RegMean", "8 bits"): base[8],
        ("task arithmetic", "32 bits"): base[32],
    }
    for key, bits in hand.items():
        assert sizes[key] == bits, key
    # The others are as large as one of these.
    others = {"differences, error feedback"}
    others |= {f"activation-aware {svd}" for svd in ("SVD", "SVD in 4 bits")}
    assert set(errors) == {system for system, _ in hand} | others
    alike = {"BitDelta", "EMR", "TALL masks", "task arithmetic"}  # Of about one size.
    for system, found in errors.items():
        if len(found) > 1 and system not in alike:
            assert max(found)[1] < min(found)[1], system
    for system in ("copies", "copies, error feedback"):
        in_order = [error for _, error in sorted(errors[system])]
        assert in_order == sorted(in_order, reverse=True)
        assert in_order[-1] < 1e-3 * in_order[0]
    by_kernel, by_column, by_data, *_ = (error for _, error in errors["BitDelta"])
    assert by_data < by_column and by_data < by_kernel


def test_infer_counts_the_tasks_found(tmp_path):
    given = ("--with", "source=digits", "steps=100", "--images", 64)
    options = ("infer", "--tasks", 2, *given)
    result, printed = measure(tmp_path, f"infer-{BACKEND}", *options)
    assert result["config"]["average_accuracy"] > 0.5
    assert [r["method"] for r in result["rows"]] == ["entropy", "energy", "gradient"]
    for row in result["rows"]:
        assert 50 < row["example"] <= 100 and row["batch"] in (0, 25, 50, 75, 100)
        assert f"| {row['method']} | {row['example']:.1f} |" in printed


def test_exact_compares_with_the_original(tmp_path):
    options = ("exact", "--only", "convert, Transformer")
    result, printed = measure(tmp_path, f"exact-{BACKEND}", *options)
    found = {row["what"]: row["largest"] for row in result["rows"]}
    assert found["spread"] > 0.1 and found["learned"] > 1e-4
    assert all(found[what] < 1e-5 for what in ("each task", "extract", "mixed", "file"))
    assert found["weights changed by a fit step"] > 20
    name = "convert, Transformer encoder"
    assert f"| {name} | extract | {found['extract']:.3g} |" in printed


# One of each kind; others, such as BERT and GPT-2, are tested with the blocks.
HUB = ["T5Backbone", "SwinTransformerBackbone", "MixtralBackbone"]
HUB += ["RWKV7Backbone", "keras.io transformer"]


def test_models_of_keras_hub_are_converted(tmp_path):
    options = ("hub", "--parts", "convert", "superpose", "--only", *HUB)
    result, printed = measure(tmp_path, "hub-torch", *options, backend="torch")
    assert [row["model"] for row in result["rows"]] == HUB
    for row in result["rows"]:
        assert "error" not in row and row["superpose"] < 1e-5
        assert max(row[key] for key in ("each", "mixed", "file", "extract")) < 1e-5
        assert row["copy"] > 0.95 and row["mixed later"] < 1e-5
        assert row["moved"] > max(row["others"], 1e-3)
        assert row["adapters moved"] > 1e-3 and row["adapters others"] <= 1e-6
        assert f"| {row['model']} | {100 * row['warn']:.1f} | " in printed


def test_adapters_answer_in_one_batch_as_alone(tmp_path):
    sizes = {"steps": 60, "layers": 1, "width": 16, "length": 16, "prompts": 1}
    sizes |= {"rounds": 1, "tasks": 2}
    options = [
        each for name, size in sizes.items() for each in (f"--{name}", str(size))
    ]
    result, printed = measure(
        tmp_path, "adapters-torch", "adapters", *options, backend="torch"
    )
    *losses, generated, sizes = result["rows"]
    assert all(row["own"] < row["base"] for row in losses)
    assert generated["differ"] == 0 and generated["characters"] == 4 * 12
    assert sizes["adapters"] < sizes["models"]
    assert f"| characters a second, 4 prompts | {generated['mixed']:.0f} | " in printed


def test_export_compares_with_the_model(tmp_path):
    format = "torch" if BACKEND == "torch" else "tf_saved_model"
    options = ("export", "--formats", format, "--models", "`models.mlp`")
    result, printed = measure(tmp_path, f"export-{BACKEND}", *options)
    (row,) = result["rows"]
    assert row["difference"] < 1e-5
    cells = f"| `models.mlp` | {BACKEND} | {row['difference']:.0e} |"
    assert cells in printed


def test_serving_compares_one_model_with_many(tmp_path):
    models = ("--folder", tmp_path, "--tasks", 2, "--models", "MLP 784-1024-1024-10")
    options = ("serving", *models, "--rounds", 2, "--requests", 32)
    name = "serving-tensorflow"  # Where exports are written.
    result, printed = measure(tmp_path, name, *options, backend="tensorflow")
    assert "requests a second, batch 32 | " in printed
    rows = {row["measure"]: row for row in result["rows"]}
    loaded = rows["memory after loading, MB"]
    assert loaded["difference"] < 1e-5
    assert loaded["models"] > 7 and loaded["superposed"] > 7
    # One model for two; and Keras writes the others' weights twice (3.15.1).
    assert 0.2 < rows["weights on disk, MB"]["ratio"] < 1 / 1.8
    for size in (1, 32):
        rounds = rows[f"requests a second, batch {size}"]["rounds"].values()
        assert all(len(values) == 2 and min(values) > 0 for values in rounds)


def test_machines_keep_their_areas(tmp_path):
    sizes = "--machines 6 --epochs 2".split()
    result, printed = measure(tmp_path, f"machines-{BACKEND}", "machines", *sizes)
    areas = {row["what"]: row["mean"] for row in result["rows"]}
    assert areas["area under the curve, each its own"] > 0.7
    assert abs(areas["points lost of its own"]) < 5
    config = result["config"]
    assert 0.05 < config["memory"] <= 0.1 and config["within_half_a_point"] <= 6
    assert "| training together, s |" in printed


def test_tenants_answer_rightly_while_others_change(tmp_path):
    options = "--parts direct --tenants 4 --asked 2 --seconds 0.2 --changes 10".split()
    result, printed = measure(tmp_path, f"tenants-{BACKEND}", "tenants", *options)
    assert [(row["asked"], row["size"]) for row in result["rows"]] == [
        (2, 1),
        (4, 32),
        (4, 1),
    ]
    assert all(row["wrong"] == row["failed"] == 0 for row in result["rows"])
    assert result["rows"][-1]["changes"] > 0 and "| one model, direct | 4 |" in printed


def test_tables_are_as_their_results():
    call("tables", "--check")


def test_a_table_that_differs_is_found_and_written(tmp_path):
    names = [page.relative_to(ROOT) for page in PAGES]
    names.append(Path("keras_psp/diagnostics/capacity.py"))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(RESULTS, tmp_path / "tools" / "results")
    rows = json.loads((RESULTS / "cost-layers-torch.json").read_text())["rows"]
    ratio = f'"ratio": {rows[-1]["ratio"]}'
    for result, old, new in (
        ("cost-layers-torch", ratio, '"ratio": 98.21'),
        ("capacity", '"1024": 92.0', '"1024": 93.0'),
    ):
        path = tmp_path / "tools" / "results" / f"{result}.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    stale = call("tables", "--check", "--root", tmp_path, status=1).splitlines()
    assert stale == [
        "keras_psp/contexts/README.md: cost-layers-torch",
        "keras_psp/diagnostics/capacity.py: capacity",
    ]
    call("tables", "--root", tmp_path)
    call("tables", "--check", "--root", tmp_path)
    assert "| 98.21 |" in (tmp_path / "keras_psp/contexts/README.md").read_text()
    lines = (tmp_path / "keras_psp/diagnostics/capacity.py").read_text().splitlines()
    assert "    | 0.05        | 93 (1024)         | 96, 95 (128, 256) |" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_table_of_figures_has_its_result(page):
    text = page.read_text()
    drawn = re.sub(r"<!-- table: .*?<!-- /table -->", "", text, flags=re.DOTALL)
    assert not re.findall(r"^\|.*\d\.\d.*", drawn, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_result_is_told_and_used(path):
    result = json.loads(path.read_text())
    check_form(result)
    if result["provenance"] == "measured":
        assert result["date"] and result["environment"]["versions"]["keras"]
    else:
        assert result["provenance"].startswith("transcribed from ")
    sources = (ROOT / "tools" / "_measure").glob("*.py")
    shown = "".join(source.read_text() for source in [*sources, *PAGES])
    assert path.stem in shown


def test_plots_are_drawn_of_results(tmp_path):
    names = call("plots", "--output", tmp_path).split()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        Path(name).name for name in names
    )
    for name in names:
        assert (ROOT / "examples" / Path(name).name).exists()
        assert Path(name).read_bytes().startswith(b"\x89PNG")
