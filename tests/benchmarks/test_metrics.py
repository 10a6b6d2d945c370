import numpy as np
import pytest

from keras_psp.benchmarks import METRICS
from keras_psp.benchmarks import TaskAccuracy
from keras_psp.benchmarks import average_accuracy
from keras_psp.benchmarks import backward_transfer
from keras_psp.benchmarks import forgetting
from keras_psp.benchmarks import forward_transfer
from keras_psp.benchmarks import learning_accuracy
from keras_psp.benchmarks import retention

NAN = float("nan")
MATRIX = np.array([[0.9, NAN, NAN], [0.95, 0.8, NAN], [0.6, 0.7, 0.85]])


@pytest.mark.once
def test_values_worked_out_by_hand():
    assert average_accuracy(MATRIX) == pytest.approx((0.6 + 0.7 + 0.85) / 3)
    assert backward_transfer(MATRIX) == pytest.approx((-0.3 - 0.1) / 2)
    assert forgetting(MATRIX) == pytest.approx((0.35 + 0.1) / 2)
    assert learning_accuracy(MATRIX) == pytest.approx((0.9 + 0.8 + 0.85) / 3)
    assert retention(MATRIX) == pytest.approx(0.6 / 0.9)
    assert retention(MATRIX, task=1) == pytest.approx(0.7 / 0.8)
    assert forward_transfer([NAN, 0.3, 0.2], 5) == pytest.approx(0.05)


@pytest.mark.once
@pytest.mark.parametrize("task", [-1, 3, 99])
def test_an_index_of_no_task(task):
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
        retention(MATRIX, task)


@pytest.mark.once
def test_tasks_that_come_back():
    # Two tasks, visited twice.
    matrix = [[0.5, NAN], [0.3, 0.6], [0.7, 0.4], [0.6, 0.8]]
    assert average_accuracy(matrix) == pytest.approx(0.7)
    assert learning_accuracy(matrix) == pytest.approx((0.7 + 0.8) / 2)
    assert backward_transfer(matrix) == pytest.approx(0.6 - 0.7)
    assert forgetting(matrix) == pytest.approx(0.7 - 0.6)
    assert retention(matrix) == pytest.approx(0.6 / 0.7)


@pytest.mark.once
def test_one_task_forgets_nothing():
    assert average_accuracy([[0.5]]) == 0.5
    assert backward_transfer([[0.5]]) == forgetting([[0.5]]) == 0.0
    assert np.isnan(forward_transfer([NAN], 5))
    assert np.isnan(retention([[0.0]]))


@pytest.mark.once
@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_bad_matrices(metric):
    for bad in (np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))):
        with pytest.raises(ValueError, match="has shape"):
            metric(bad)
    with pytest.raises(ValueError, match="no gaps"):
        metric([[1.0, 1.0], [NAN, 1.0]])


def test_task_accuracy_counts_each_task_apart(rng):
    metric = TaskAccuracy(num_tasks=4)
    label, task = rng.integers(0, 3, 90), rng.integers(0, 3, 90)
    logits = rng.normal(size=(90, 3)).astype("float32")
    weight = rng.integers(0, 2, 90)
    for part in np.split(np.arange(90), 3):
        y_true = np.stack([label, task], axis=1)[part]
        metric.update_state(y_true, logits[part], weight[part])
    result = np.array([float(accuracy) for accuracy in metric.result()])
    correct = logits.argmax(axis=1) == label
    expected = [correct[(task == k) & (weight == 1)].mean() for k in range(3)]
    np.testing.assert_allclose(result[:3], expected, rtol=1e-6)
    assert np.isnan(result[3])  # It had no example.
    again = TaskAccuracy.from_config(metric.get_config())
    assert again.num_tasks == 4 and again.name == metric.name
    metric.reset_state()
    assert np.isnan([float(accuracy) for accuracy in metric.result()]).all()
