import numpy as np
import pytest
import tensorflow as tf

from keras_psp.datasets import incremental
from keras_psp.datasets import permuted
from keras_psp.datasets import rotating

# It is the same tf.data on every backend.
pytestmark = pytest.mark.once


def collect(dataset):
    """All of a dataset, batched or not, as (image, task, label)."""
    parts = [(x["image"].numpy(), x["task"].numpy(), y.numpy()) for x, y in dataset]
    join = np.concatenate if parts[0][0].ndim == 4 else np.stack
    return tuple(join(part) for part in zip(*parts, strict=True))


@pytest.fixture
def arrays(rng):
    x = rng.integers(0, 256, size=(50, 3, 4, 2), dtype="uint8")
    y = np.arange(50) % 5
    return (x[:40], y[:40]), (x[40:], y[40:])


def test_elements(arrays):
    tasks = permuted(arrays, num_tasks=3)
    spec = (
        {
            "image": tf.TensorSpec((3, 4, 2), tf.float32),
            "task": tf.TensorSpec((), tf.int32),
        },
        tf.TensorSpec((), tf.int32),
    )
    assert tasks.train(1).element_spec == tasks.test(1).element_spec == spec
    assert (tasks.num_tasks, tasks.num_classes, tasks.image_shape) == (3, 5, (3, 4, 2))
    assert (len(tasks.train(0)), len(tasks.test(0))) == (40, 10)
    assert (len(tasks.train(0, 16)), len(tasks.stream(7, 8))) == (3, 21)


def test_nothing_is_tuned_while_it_runs(arrays):
    tasks = permuted(arrays, num_tasks=2)
    for dataset in (tasks.stream(2, 2), tasks.test(1, 2), tasks.test_all([0, 1], 2)):
        assert dataset.options().autotune.enabled is False


def test_task_0_is_the_source(arrays):
    tasks = permuted(arrays, num_tasks=3)
    for split, (x, y) in zip((tasks.train, tasks.test), arrays, strict=True):
        for batch_size in (None, 16):
            image, task, label = collect(split(0, batch_size))
            np.testing.assert_allclose(image, x / np.float32(255), rtol=1e-6)
            np.testing.assert_array_equal(label, y)
            assert not task.any()


def test_other_tasks_are_one_permutation_of_train_and_test(arrays):
    tasks = permuted(arrays, num_tasks=4)
    orders = []
    for k in range(4):
        image = np.concatenate([collect(s(k))[0] for s in (tasks.train, tasks.test)])
        source = np.concatenate([x for x, _ in arrays]) / np.float32(255)
        image, source = image.reshape(50, 24), source.reshape(50, 24)
        # Every pixel of the source has one place, the same in all 50 images.
        same = np.abs(image[:, :, None] - source[:, None, :]).max(axis=0) < 1e-6
        assert (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()
        orders.append(tuple(same.argmax(axis=1)))
    assert orders[0] == tuple(range(24))
    assert len(set(orders)) == 4


def test_seed_decides_all(arrays):
    def stream(seed, num_tasks=2):
        return collect(permuted(arrays, num_tasks, seed=seed).stream(12, 16))

    one, same, other = stream(1), stream(1), stream(2)
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[2], other[2])
    assert not np.array_equal(one[0], other[0])
    for a, b in zip(one, stream(1, num_tasks=3), strict=True):
        np.testing.assert_array_equal(a, b[: len(a)])


def test_permutations_are_the_same_for_ever_and_everywhere():
    x = np.arange(6, dtype="float32").reshape(1, 6)
    tasks = permuted(((x, [0]), (x, [0])), num_tasks=3, seed=11)
    orders = [next(iter(tasks.test(k)))[0]["image"].numpy().tolist() for k in range(3)]
    assert orders == [[0, 1, 2, 3, 4, 5], [3, 0, 4, 1, 2, 5], [0, 1, 4, 5, 3, 2]]


def test_stream_passes_over_the_source_again_and_again(arrays):
    tasks = permuted(arrays, num_tasks=2)
    image, task, label = collect(tasks.stream(steps_per_task=8, batch_size=10))
    np.testing.assert_array_equal(task, np.repeat([0, 1], 80))
    source = arrays[0][0].reshape(40, -1) / np.float32(255)
    distance = np.abs(image[:80].reshape(80, 1, 24) - source[None]).max(axis=2)
    drawn = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-6
    np.testing.assert_array_equal(label[:80], arrays[0][1][drawn])
    first, second = drawn[:40], drawn[40:]
    for one_pass in (first, second):  # Every image once,
        np.testing.assert_array_equal(np.sort(one_pass), np.arange(40))
    assert not np.array_equal(first, second)  # in another order each time.
    assert not np.array_equal(first, np.arange(40))


def test_all_tests_in_one_pass(arrays):
    tasks = permuted(arrays, num_tasks=3)
    dataset = tasks.test_all([0, 2], batch_size=4)
    assert len(dataset) == 6
    image, task, label = collect(dataset)
    np.testing.assert_array_equal(label[:, 0], np.tile(arrays[1][1], 2))
    np.testing.assert_array_equal(label[:, 1], np.repeat([0, 2], 10))
    np.testing.assert_array_equal(task, label[:, 1])
    np.testing.assert_array_equal(image[10:], collect(tasks.test(2))[0])


@pytest.mark.parametrize("task", [-1, 3])
def test_task_out_of_range(arrays, task):
    tasks = permuted(arrays, num_tasks=3)
    for split in (tasks.train, tasks.test, lambda k: tasks.test_all([0, k], 4)):
        with pytest.raises(ValueError, match=rf"\[0, 3\).*task={task}"):
            split(task)
    with pytest.raises(TypeError, match="`task` must"):
        tasks.train(1.0)


@pytest.mark.parametrize(
    "bad, error",
    [
        *((0, ValueError), (-1, ValueError)),
        *((2.5, TypeError), (True, TypeError), ("8", TypeError)),
    ],
)
def test_sizes_must_be_positive_integers(arrays, bad, error):
    tasks = permuted(arrays, num_tasks=2)
    for call in (
        lambda: tasks.stream(bad, 8),
        lambda: tasks.stream(8, bad),
        lambda: tasks.train(0, bad),
    ):
        with pytest.raises(error, match="must be a positive integer"):
            call()


def test_batch_larger_than_the_source(arrays):
    with pytest.raises(ValueError, match="at most 40"):
        permuted(arrays, num_tasks=2).stream(1, 41)


@pytest.mark.parametrize(
    "num_tasks, error", [(0, ValueError), (-1, ValueError), (1.0, TypeError)]
)
def test_bad_num_tasks(num_tasks, error):
    with pytest.raises(error, match="num_tasks="):
        permuted("digits", num_tasks=num_tasks)


def test_each_task_is_streamed_in_an_order_of_its_own(arrays):
    tasks = permuted(arrays, num_tasks=3)
    labels = [label.numpy() for _, label in tasks.stream(5, 8)]
    orders = {tuple(np.concatenate(labels[5 * k : 5 * k + 5])) for k in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize("make", [permuted, rotating, incremental])
def test_bad_seeds_are_refused_before_anything_is_loaded(make):
    for seed, error in (
        (-1, ValueError),
        (2**31, ValueError),  # It would fail inside tf.data.
        (0.5, TypeError),
        (True, TypeError),
        ("0", TypeError),
    ):
        with pytest.raises(error, match="`seed` must be"):
            make("digits", seed=seed)
