import dataclasses

import numpy as np
import pytest

from keras_psp.benchmarks import IncrementalConfig
from keras_psp.benchmarks import report
from keras_psp.benchmarks import run

pytestmark = pytest.mark.once

SMALL = IncrementalConfig(
    source="digits",
    classes_per_task=2,
    tasks=3,
    steps=20,
    batch_size=32,
    # Fewer channels crash torch 2.13 on one thread: oneDNN writes out of bounds in the
    # gradients of a 1x1 convolution with strides on channels_last.
    width=0.125,
    learning_rate=3e-3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(folder):
    return run(SMALL, output=folder / "superposed")


def test_it_is_a_run_like_any_other(result, folder):
    assert result.experiment == "incremental"
    assert (np.diagonal(result.accuracy_matrix) > 0.6).all()
    assert result.examples["train"] == [[145, 147], [136, 148], [149, 149]]
    assert result.contexts["bits_per_task"] > 0
    (rows,) = report([folder / "superposed"]).tables.values()
    assert rows[0]["system"] == "superposed (binary)"


def test_the_network_may_be_a_perceptron():
    config = dataclasses.replace(SMALL, model="mlp", head="multi", rank=2)
    assert (np.diagonal(run(config).accuracy_matrix) > 0.6).all()
    model = config.build_model(config.build_tasks())
    units = [layer.units for layer in model.layers if hasattr(layer, "units")]
    assert units == [32, 32, 2]


def test_separate_networks_forget_nothing(folder):
    config = dataclasses.replace(
        SMALL, separate=True, context="identity", head="shared", norm="shared"
    )
    result = run(config, output=folder / "separate")
    matrix = result.accuracy_matrix
    for j in range(3):
        assert (matrix[j:, j] == matrix[j, j]).all()
    assert result.forgetting == 0 and result.average_accuracy > 0.6
    # Each is what a network would be that learned this task alone.
    alone = run(dataclasses.replace(config, tasks=1))
    assert alone.accuracy_matrix[0, 0] == matrix[0, 0]
    (rows,) = report([folder / "separate"]).tables.values()
    assert rows[0]["system"].endswith("shared norms, a network for each task")


def test_each_option_reaches_the_model():
    tasks = SMALL.build_tasks()
    for option, value, names in (
        ("head", "multi", ("logits", "TaskDense")),
        ("norm", "group", ("stem_norm", "GroupNormalization")),
    ):
        model = dataclasses.replace(SMALL, **{option: value}).build_model(tasks)
        assert type(model.get_layer(names[0])).__name__ == names[1]
    model = dataclasses.replace(SMALL, context_over="channels").build_model(tasks)
    assert model.get_layer("stem_conv").context_over == "channels"
    assert len(dataclasses.replace(SMALL, tasks=5).build_tasks().test(4)) > 0


@pytest.mark.parametrize(
    "field, value",
    [("model", "resnet"), ("norm", "layer"), ("head", "none"), ("source", "cifar")],
)
def test_bad_configs(field, value):
    with pytest.raises(ValueError, match=f"Unknown {field}"):
        dataclasses.replace(SMALL, **{field: value})
