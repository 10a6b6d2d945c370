"""What is asked of a GPU, of which there is none here: torch is told that there is."""

import numpy as np
import pytest
from conftest import BACKEND
from layer_checks import draw
from layer_checks import to_numpy

from keras_psp._core import backend
from keras_psp.models import resnet18

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="which alone runs eagerly")


@pytest.fixture
def reads(monkeypatch):
    """What has been read of where reading takes waiting."""
    found, all_equal = [], backend._all_equal

    def read(index):
        found.append(index)
        return all_equal(index)

    monkeypatch.setattr(backend, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(backend, "_all_equal", read)
    return found


def call(model, x, task):
    import torch

    return to_numpy(model({"image": torch.tensor(x), "task": task}))


def test_a_batch_is_asked_once_whether_it_holds_one_task(reads):
    import torch

    model = resnet18((8, 8, 1), 3, num_tasks=5, width=0.03, stem="imagenet")
    x, task = draw((10, 8, 8, 1))
    each = [call(model, x[i : i + 1], torch.tensor(task[i : i + 1])) for i in range(10)]
    reads.clear()
    given = torch.tensor(task)
    for _ in range(2):
        np.testing.assert_allclose(
            call(model, x, given), np.concatenate(each), rtol=1e-4, atol=1e-4
        )
    assert len(reads) == 1
    given[:] = given[4]  # Another answer, in the same memory.
    np.testing.assert_allclose(
        call(model, x, given)[4:5], each[4], rtol=1e-4, atol=1e-4
    )
    assert len(reads) == 2


def test_an_unknown_task_is_nan_without_reading_it(reads):
    import torch

    model = resnet18((8, 8, 1), 3, num_tasks=5, width=0.03, stem="imagenet")
    x = np.ones((2, 8, 8, 1), "float32")
    y = call(model, x, torch.tensor([7, 1], dtype=torch.int32))
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
    assert len(reads) == 1
