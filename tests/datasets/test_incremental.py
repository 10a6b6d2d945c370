import numpy as np
import pytest
from test_permuted import collect

from keras_psp.datasets import Source
from keras_psp.datasets import incremental

# It is the same tf.data on every backend.
pytestmark = pytest.mark.once


def draw(classes, per_class=3, seed=0, shape=(6, 6, 2)):
    """Images whose first pixel is their class; training and test sets."""
    rng = np.random.default_rng(seed)
    sets = []
    for n in (per_class, 2):
        y = rng.permutation(np.repeat(classes, n))
        x = rng.integers(0, 256, size=(len(y), *shape), dtype="uint8")
        x[:, 0, 0, 0] = y
        sets.append((x, y))
    return tuple(sets)


def test_tasks_have_classes_of_their_own():
    first, second = draw(range(4)), draw(range(4, 11), seed=1)
    tasks = incremental(first, second, classes_per_task=2)
    assert (tasks.num_tasks, tasks.num_classes, tasks.image_shape) == (5, 2, (6, 6, 2))
    assert tasks.examples == {"train": [[3, 3]] * 5, "test": [[2, 2]] * 5}
    for split, per_class in ((tasks.train, 3), (tasks.test, 2)):
        for k in range(5):
            for batch_size in (None, 4):
                image, task, label = collect(split(k, batch_size))
                assert len(split(k)) == len(image) == 2 * per_class
                assert (task == k).all()
                classes = np.rint((image[:, 0, 0, 0] + 1) * 127.5)
                np.testing.assert_array_equal(classes, label + 2 * k)
                assert image.min() >= -1 and image.max() <= 1
    image, task, label = collect(tasks.test_all(range(1, 4), 3))
    np.testing.assert_array_equal(task, np.repeat([1, 2, 3], 4))
    np.testing.assert_array_equal(label[:, 1], task)


def test_classes_that_do_not_fill_a_task_are_left_out():
    assert incremental(draw(range(7)), classes_per_task=3).num_tasks == 2
    assert incremental(draw(range(7)), classes_per_task=3, num_tasks=1).num_tasks == 1


def test_stream_gives_each_task_its_own_examples():
    tasks = incremental(draw(range(6)), classes_per_task=2, seed=3)
    stream = list(tasks.stream(steps_per_task=5, batch_size=2))
    assert len(stream) == 15
    for i, (inputs, label) in enumerate(stream):
        assert (inputs["task"].numpy() == i // 5).all()
        classes = np.rint((inputs["image"].numpy()[:, 0, 0, 0] + 1) * 127.5)
        np.testing.assert_array_equal(classes, label.numpy() + 2 * (i // 5))
    # A pass has every example once.
    seen = np.concatenate([inputs["image"].numpy() for inputs, _ in stream[:3]])
    assert len(np.unique(seen.reshape(6, -1), axis=0)) == 6
    fewer = incremental(draw(range(6)), classes_per_task=2, num_tasks=2, seed=3)
    for (a, _), (b, _) in zip(
        fewer.stream(5, 2), tasks.stream(5, 2).take(10), strict=True
    ):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_unequal_tasks():
    (x, y), test = draw(range(4))
    keep = (y != 3) | (np.cumsum(y == 3) == 1)
    tasks = incremental(((x[keep], y[keep]), test), classes_per_task=2)
    assert tasks.examples["train"] == [[3, 3], [3, 1]]
    with pytest.raises(ValueError, match="at most 4"):
        tasks.stream(5, 5)
    assert len(list(tasks.stream(5, 4))) == 10


def test_augmentation_flips_and_shifts_training_images():
    source = draw(range(2), per_class=40)
    plain = incremental(source, classes_per_task=2, seed=1)
    tasks = incremental(source, classes_per_task=2, seed=1, augment=True)
    for a, b in zip(plain.test(0), tasks.test(0), strict=True):
        np.testing.assert_array_equal(a[0]["image"], b[0]["image"])
    moved = set()
    for (a, _), (b, _) in zip(plain.stream(4, 40), tasks.stream(4, 40), strict=True):
        for original, image in zip(a["image"].numpy(), b["image"].numpy(), strict=True):
            found = _find(original, image)
            assert found is not None
            moved.add(found)
    assert len(moved) > 60 and {flip for flip, _, _ in moved} == {0, 1}
    assert {row for _, row, _ in moved} == set(range(9))
    again = incremental(source, classes_per_task=2, seed=1, augment=True)
    for (a, _), (b, _) in zip(again.stream(4, 40), tasks.stream(4, 40), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def _find(original, image):
    for flip in range(2):
        padded = original[:, ::-1] if flip else original
        padded = np.pad(padded, ((4, 4), (4, 4), (0, 0)), constant_values=-1)
        for row, column in np.ndindex(9, 9):
            if np.array_equal(padded[row : row + 6, column : column + 6], image):
                return flip, row, column
    return None


def test_digits():
    tasks = incremental("digits", classes_per_task=2)
    assert tasks.num_tasks == 5 and tasks.source.name == "digits"
    image, _, _ = collect(tasks.train(0))
    assert image.min() == -1 and image.max() == 1


def test_arrays_of_floats_are_used_as_they_are():
    (x, y), (x_test, y_test) = draw(range(2))
    source = (x.astype("float32"), y), (x_test.astype("float32"), y_test)
    image, _, _ = collect(incremental(source, classes_per_task=2).test(0))
    assert image.max() > 200
    own = Source("own", x, y.astype("int32"), x_test, y_test.astype("int32"), 0.25, 2)
    image, _, _ = collect(incremental(own, classes_per_task=2).test(0))
    assert image.min() >= -0.125 and image.max() <= 0.375


def test_a_class_without_images_is_named():
    with pytest.raises(ValueError, match="Class 0 of arrays has no training images"):
        incremental(draw(range(2, 6)), classes_per_task=2)
    (x, y), (x_test, y_test) = draw(range(4))
    keep = y_test != 2
    with pytest.raises(ValueError, match="Class 2 of arrays has no test images"):
        incremental(((x, y), (x_test[keep], y_test[keep])), classes_per_task=2)
    with pytest.raises(ValueError, match="Class 4 of arrays.*classes for 2 tasks"):
        incremental(draw(range(4)), classes_per_task=2, num_tasks=3)
    with pytest.raises(ValueError, match="Class 4 of arrays has no images"):
        incremental(draw(range(4)), classes_per_task=5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="one shape, dtype and scale"):
        incremental(draw(range(2)), draw(range(2, 4), shape=(5, 6, 2)))
    with pytest.raises(ValueError, match="classes_per_task=0"):
        incremental("digits", classes_per_task=0)
    with pytest.raises(TypeError, match="num_tasks"):
        incremental("digits", num_tasks=2.0)
    with pytest.raises(ValueError, match="Did you mean 'cifar10'"):
        incremental("cifar1O")
