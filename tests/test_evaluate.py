"""Metrics of a compiled model, task by task."""

import json

import keras
import numpy as np
import pytest
from own_model import OwnModel

import keras_psp
from keras_psp.evaluation import AccuracyMatrix
from keras_psp.evaluation import average_accuracy

X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
Y = np.arange(30) % 3


def make_model(num_tasks=2):
    model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=num_tasks)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, weighted_metrics=["accuracy"])
    return model


def test_each_task_is_measured_as_it_is_alone():
    model = make_model(["paris", "tokyo", "berlin"])
    weight = np.linspace(0, 1, 30, dtype="float32")
    data = {"tokyo": (X, Y), "paris": ({"image": X[:20]}, Y[:20], weight[:20])}
    found = keras_psp.evaluate(model, data, batch_size=7)
    assert [(row["task"], row["examples"]) for row in found.rows] == [
        ("tokyo", 30),
        ("paris", 20),
    ]
    for row, task, number, sample_weight in zip(
        found.rows, (1, 0), (30, 20), (None, weight[:20]), strict=True
    ):
        x = {"image": X[:number], "task": np.full(number, task)}
        alone = model.evaluate(
            x,
            Y[:number],
            batch_size=7,
            sample_weight=sample_weight,
            return_dict=True,
            verbose=0,
        )
        assert {**row, "task": 0, "examples": 0} == {**alone, "task": 0, "examples": 0}


def test_models_of_a_class_of_their_own_are_measured():
    model = OwnModel()
    model(X)
    model = keras_psp.convert(model, 2, shared="freeze")
    model.compile(loss="mse", metrics=["mae"])
    found = keras_psp.evaluate(model, [(X, X[:, :3]), [(X[:10], X[:10, :3])] * 2])
    assert [row["examples"] for row in found.rows] == [30, 20]
    assert all(np.isfinite(row["mae"]) for row in found.rows)


def test_it_is_a_table_in_text_and_notebooks_and_a_plot(tmp_path):
    found = keras_psp.evaluate(make_model(["<b>", "tokyo"]), [(X, Y), (X, Y)])
    lines = str(found).splitlines()
    assert lines[0].split() == ["examples", "accuracy", "loss"]
    assert len(lines) == 3 and lines[2].startswith("tokyo")
    page = found._repr_html_()
    assert page.count("<tr>") == 3 and "&lt;b&gt;" in page and "<b>" not in page
    frame = found.to_pandas()
    assert frame["accuracy"].tolist() == [row["accuracy"] for row in found.rows]
    figure = found.plot(tmp_path / "tasks.png")
    assert len(figure.axes) == 2 and (tmp_path / "tasks.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "data, error, message",
    [
        ({}, ValueError, "must hold a task's examples"),
        ([], ValueError, "must hold a task's examples"),
        (X, TypeError, "dictionary of examples"),
        ({2: (X, Y)}, ValueError, "task"),
        ({"paris": (X, Y)}, ValueError, "paris"),
        ({0: X}, ValueError, "must have labels. Received: 0"),
        ({0: (X[:0], Y[:0])}, ValueError, "at least one example"),
        ({0: (X, Y[:3])}, ValueError, r"data\[0\]"),
        ({0: ([X, X], Y)}, ValueError, "inputs \\['image'\\]"),
    ],
)
def test_bad_data(data, error, message):
    with pytest.raises(error, match=message):
        keras_psp.evaluate(make_model(), data)


def test_bad_models():
    with pytest.raises(TypeError, match="takes a task"):
        keras_psp.evaluate(keras.Sequential([keras.Input((4,))]), {0: (X, Y)})
    model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=2)
    with pytest.raises(ValueError, match="must be compiled"):
        keras_psp.evaluate(model, {0: (X, Y)})


def test_a_matrix_of_own_arrays():
    """A row for each `fit()`, which is what `evaluate()` finds then."""
    model = make_model(["paris", "tokyo"])
    data = {"paris": (X, Y), "tokyo": ({"image": X[:20]}, Y[:20])}
    matrix = AccuracyMatrix(data, batch_size=8)
    rows = []

    def learn(task):
        inputs = {"image": X, "task": np.full(30, task)}
        model.fit(inputs, Y, callbacks=[matrix], epochs=2, verbose=0)
        found = keras_psp.evaluate(model, data, batch_size=8)
        rows.append([row["accuracy"] for row in found.rows])

    for task in range(2):
        learn(task)
    np.testing.assert_array_equal(matrix.matrix, rows)
    np.testing.assert_array_equal(matrix.ahead, [np.nan, rows[0][1]])
    assert len(matrix.train_seconds) == len(matrix.test_seconds) == 2
    assert average_accuracy(matrix.matrix) == np.mean(rows[1])
    # A task more: it has no accuracy in the rows that there are.
    model.add_tasks(["lima"])
    data["lima"] = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    matrix.add_tasks({"lima": data["lima"]})
    learn(2)
    expected = np.array([[*rows[0], np.nan], [*rows[1], np.nan], rows[2]])
    np.testing.assert_array_equal(matrix.matrix, expected)
    assert list(matrix.to_pandas()) == ["visit", "paris", "tokyo", "lima"]
    # It goes on from a file.
    other = AccuracyMatrix(data)
    other.restore(json.loads(json.dumps(matrix.state())))
    assert other.rows[2] == matrix.rows[2] and len(other.rows) == 3


@pytest.mark.once
def test_a_matrix_of_own_arrays_is_a_table_and_a_plot(tmp_path):
    model = make_model()
    matrix = AccuracyMatrix([(X, Y), (X, Y)], metric="loss")
    assert "<table>" in matrix._repr_html_()  # Before anything was measured, too.
    x = {"image": X, "task": np.zeros(30, int)}
    model.fit(x, Y, callbacks=[matrix], verbose=0)
    assert matrix.rows[0]["task 1"] == matrix.matrix[0, 1] > 0
    shown = matrix._repr_html_()
    assert shown.count("<tr>") == 2 and "<th>task 1</th>" in shown and "<img" in shown
    axis = matrix.plot(tmp_path / "matrix.svg").axes[0]
    assert [x.get_text() for x in axis.get_xticklabels()] == ["task 0", "task 1"]
    assert axis.get_ylabel() == "after fit()"
    assert (tmp_path / "matrix.svg").stat().st_size > 1000


@pytest.mark.once
@pytest.mark.parametrize(
    "tasks, options, error, message",
    [
        ({}, {}, ValueError, "dictionary of examples by task"),
        (X, {}, TypeError, "TaskSequence"),
        ({0: X}, {}, ValueError, "must have labels. Received: 0"),
        ([(X, Y)], {"separate": True}, ValueError, "separate=True"),
        ([(X, Y)], {"batch_size": 0}, ValueError, "batch_size=0"),
        ({"pari": (X, Y)}, {}, ValueError, "Did you mean 'paris'"),
        ([(X, Y)], {"metric": "acuracy"}, ValueError, "Did you mean 'accuracy'"),
        ([(X[:, :2], Y)], {}, ValueError, "image"),
    ],
)
def test_bad_matrices_are_told_before_anything_is_trained(
    tasks, options, error, message
):
    model = make_model(["paris", "tokyo"])
    before = model.get_weights()
    with pytest.raises(error, match=message):
        matrix = AccuracyMatrix(tasks, **options)
        x = {"image": X, "task": np.zeros(30, int)}
        model.fit(x, Y, callbacks=[matrix], verbose=0)
    for weight, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, other)


@pytest.mark.once
def test_tasks_are_added_to_a_matrix_once_and_to_no_sequence():
    matrix = AccuracyMatrix([(X, Y)])
    matrix.add_tasks([(X, Y)])
    assert list(matrix.tasks) == [0, 1]
    with pytest.raises(ValueError, match="Received: 1, which is there"):
        matrix.add_tasks({1: (X, Y)})
    with pytest.raises(ValueError, match="shape"):
        matrix.restore(AccuracyMatrix([(X, Y)] * 3).state())
    sequence = AccuracyMatrix(keras_psp.datasets.permuted("digits", num_tasks=2))
    with pytest.raises(TypeError, match="TaskSequence"):
        sequence.add_tasks([(X, Y)])
