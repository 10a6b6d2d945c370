"""What notebooks show, and the notebooks in examples/."""

import ast
import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKEND

import keras_psp
from keras_psp import benchmarks
from keras_psp import datasets
from keras_psp import diagnostics
from keras_psp.diagnostics.interference import Interference
from keras_psp.diagnostics.interference import LayerInterference


@pytest.fixture(scope="module")
def results():
    """One of each kind of result."""
    model = keras_psp.models.mlp((6,), 3, num_tasks=2, units=8, depth=1)
    model.compile(
        loss="sparse_categorical_crossentropy", metrics=["accuracy"], optimizer="sgd"
    )
    x, y = np.random.default_rng(0).normal(size=(20, 6)), np.arange(20) % 3
    tasks = datasets.permuted("digits", num_tasks=2)
    learner = keras_psp.models.mlp(tasks.image_shape, 10, 2, units=8, depth=1)
    learner.compile(loss="sparse_categorical_crossentropy", optimizer="sgd")
    matrix = benchmarks.AccuracyMatrix(tasks)
    stream = tasks.stream(2, 32)
    options = {"epochs": 2, "steps_per_epoch": 2, "verbose": 0, "shuffle": False}
    learner.fit(stream, callbacks=[matrix], **options)
    plain = [keras_psp.extract(model, task) for task in range(2)]
    found = {
        "evaluate": keras_psp.evaluate(model, [(x, y), (x, y)]),
        "interference": diagnostics.interference(model),
        "memory": diagnostics.memory(model),
        "capacity": diagnostics.capacity(model),
        "frontier": diagnostics.frontier(plain, data=[x] * 2, budgets=[2.0]),
        "matrix": matrix,
        "run": benchmarks.run(benchmarks.PermutedConfig(tasks=2, steps=4, units=8)),
    }
    return found


KINDS = (
    *("evaluate", "interference", "memory", "capacity", "frontier", "matrix", "run"),
)


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_has_a_table_and_a_plot(results, kind, monkeypatch):
    result = results[kind]
    shown = result._repr_html_()
    rows = list(result.rows)
    assert shown.count("<tr>") == len(rows) + 1
    assert shown.count('src="data:image/png;base64,') == 1
    frame = result.to_pandas()
    assert len(frame) == len(rows) and list(frame) == list(rows[0])
    figure = result.plot()
    assert figure.axes
    assert figure._repr_png_().startswith(b"\x89PNG")  # Without pyplot, too.
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    alone = result._repr_html_()
    assert alone.startswith(re.match("<table>.*</table>", shown)[0])
    assert "Plots need Matplotlib" in alone and "<img" not in alone


@pytest.mark.once
def test_interference_gives_a_verdict():
    layers = [
        LayerInterference(name, 10, np.array([[1.0, share], [share, 1.0]]))
        for name, share in (("a", 0.01), ("b", 0.1), ("c", 0.6))
    ]
    assert [layer.verdict for layer in layers] == ["low", "noticeable", "large"]
    found = Interference(tuple(layers))
    assert found.verdict == "large: c reads 0.6 of its signal"
    assert str(found).splitlines()[3].endswith("large")


NOTEBOOKS = sorted(
    (Path(__file__).parent.parent / "examples/notebooks").glob("*.ipynb")
)
LEAST = {"eight_models": 0.85, "mixed_batches": 0.85, "one_after_the_other": 0.85}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    """Runs its cells as a kernel does: the last expression of each is shown.

    On torch as they stand; on the other backends with two of the tasks, for an epoch.
    """
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sources.pop(0).startswith("%pip install")
    names, shown = {"__name__": "__main__"}, []
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # As users have them.
        for source in sources:
            if BACKEND != "torch":
                source = re.sub(r"(num_(tasks|customers) =) \d", r"\1 2", source)
                source = re.sub(r"epochs=\d+", "epochs=1", source)
            tree = ast.parse(source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, path.name, "exec"), names)
            if last is not None:
                code = compile(ast.Expression(last.value), path.name, "eval")
                shown.append(eval(code, names))
    assert any("<img" in x._repr_html_() for x in shown if hasattr(x, "_repr_html_"))
    if BACKEND != "torch":
        return
    found = [float(x) for x in re.findall(r"\d\.\d{3}", capsys.readouterr().out)]
    assert found[-1] > LEAST[path.stem]
    if path.stem == "eight_models":  # Beside each model alone.
        assert found[-1] > found[-2] - 0.02


@pytest.mark.once
def test_there_are_notebooks_that_open_in_colab():
    assert {path.stem for path in NOTEBOOKS} == set(LEAST)
    for path in NOTEBOOKS:
        text = path.read_text()
        assert (
            f"github/keras-psp/keras-psp/blob/main/examples/notebooks/{path.name}"
            in text
        )
        assert all(not cell.get("outputs") for cell in json.loads(text)["cells"])
