"""Metrics of a compiled model, task by task."""

import keras
import numpy as np
import pytest

import keras_psp

X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
Y = np.arange(30) % 3


def make_model(num_tasks=2):
    model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=num_tasks)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, weighted_metrics=["accuracy"])
    return model


@keras.saving.register_keras_serializable("tests")
class OwnModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)


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
