import numpy as np
import pytest

from keras_psp.datasets import rotating

# It is the same tf.data on every backend.
pytestmark = pytest.mark.once


@pytest.fixture
def arrays(rng):
    x = rng.random((24, 9, 9, 2)).astype("float32")
    y = np.arange(24) % 3
    return (x, y), (x[:20] * 2, y[:20])


def collect(dataset):
    """All of a dataset of batches: images, tasks and labels."""
    parts = [(x["image"].numpy(), x["task"].numpy(), y.numpy()) for x, y in dataset]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def turn(image, degrees):
    """Turns an image counterclockwise, pixel by pixel."""
    size, angle = len(image), np.deg2rad(degrees)
    centre, turned = (size - 1) / 2, np.zeros_like(image)
    for row in range(size):
        for column in range(size):
            right, up = column - centre, centre - row
            # Where it was before it was turned.
            x = np.cos(angle) * right + np.sin(angle) * up + centre
            y = centre - (-np.sin(angle) * right + np.cos(angle) * up)
            for i in (int(np.floor(y)), int(np.floor(y)) + 1):
                for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= i < size and 0 <= j < size:
                        weight = (1 - abs(y - i)) * (1 - abs(x - j))
                        turned[row, column] += weight * image[i, j]
    return turned


def test_a_batch_turns_a_little_further_each_step(arrays):
    tasks = rotating(arrays, period=12, context_every=3, cycles=2)
    assert (tasks.num_tasks, tasks.num_visits, tasks.num_contexts) == (4, 8, 4)
    batches = list(tasks.stream(steps_per_task=3, batch_size=8))
    assert len(batches) == 24
    source = arrays[0][0]
    for step, (x, y) in enumerate(batches):
        assert (x["task"].numpy() == step % 12 // 3).all()
        for image, label in zip(x["image"].numpy()[:2], y.numpy()[:2], strict=True):
            candidates = [turn(s, 30 * step) for s in source[label::3]]
            apart = [np.abs(image - c).max() for c in candidates]
            assert min(apart) < 1e-4


def test_a_quarter_turn_is_exact(arrays):
    tasks = rotating(arrays, period=4, context_every=1)
    source = arrays[1][0]
    for k in range(4):
        image, task, label = collect(tasks.test(k, batch_size=7))
        np.testing.assert_allclose(image, np.rot90(source, k, (1, 2)), atol=1e-4)
        np.testing.assert_array_equal(label, arrays[1][1])
        assert (task == k).all()


def test_test_images_are_spread_over_the_angles_of_the_arc(arrays):
    tasks = rotating(arrays, period=8, context_every=4, assignment="step")
    assert tasks.num_contexts == 8
    image, context, _ = collect(tasks.test(1, batch_size=20))
    assert set(context) == {4, 5, 6, 7}
    counts = np.bincount(context)[4:]
    assert counts.max() - counts.min() <= 2
    for i in range(20):  # Each has the context of its angle.
        expected = turn(arrays[1][0][i], 45 * context[i])
        np.testing.assert_allclose(image[i], expected, atol=1e-4)


def test_corners_are_black(rng):
    tasks = rotating("digits", period=8, context_every=1)
    black = -tasks.source.mean / tasks.source.std
    image = collect(tasks.test(1, batch_size=100))[0]
    np.testing.assert_allclose(image[:, 0, 0], black, atol=1e-5)


def test_random_contexts_change_from_one_circle_to_the_next(arrays):
    tasks = rotating(arrays, period=12, context_every=3, cycles=2, assignment="random")
    given = np.array(
        [x["task"].numpy() for x, _ in tasks.stream(steps_per_task=3, batch_size=4)]
    )
    assert (given == given[:, :1]).all()
    first, second = given[:12, 0], given[12:, 0]
    assert sorted(first) == sorted(second) == list(range(12))
    assert (first != second).any()
    # After visit 5 the arcs 0 and 1 have been seen in the second circle.
    for task, circle in ((0, second), (1, second), (2, first), (3, first)):
        dataset = tasks.test_all([task], 20, visit=5)
        _, context, label = collect(dataset)
        assert (label[:, 1] == task).all()
        assert set(context) == set(circle[3 * task : 3 * task + 3])


def test_a_mixture_is_of_the_neighbours(arrays):
    tasks = rotating(arrays, period=12, context_every=3, assignment="mixture")
    assert tasks.soft
    weights = np.array(
        [x["task"].numpy()[0] for x, _ in tasks.stream(steps_per_task=3, batch_size=4)]
    )
    for step, row in enumerate(weights):
        expected = np.zeros(4)
        expected[step // 3] = 1 - step % 3 / 3
        expected[(step // 3 + 1) % 4] += step % 3 / 3
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_a_stream_can_begin_at_any_visit(arrays):
    tasks = rotating(arrays, period=12, context_every=3, cycles=2, assignment="random")
    whole, rest = (collect(tasks.stream(3, 8, start=start)) for start in (0, 5))
    for a, b in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(a[5 * 3 * 8 :], b)
    with pytest.raises(ValueError, match=r"`start` must lie in \[0, 8\)"):
        tasks.stream(3, 8, start=8)


def test_joint_batches_are_of_random_tasks(arrays):
    tasks = rotating(arrays, period=12, context_every=3)
    stream = tasks.stream(20, 8, joint=True)
    assert len(stream) == 80
    given = np.array([x["task"].numpy() for x, _ in stream])
    assert (given == given[:, :1]).all()
    assert np.bincount(given[:, 0], minlength=4).min() >= 10
    rest = np.array([x["task"].numpy() for x, _ in tasks.stream(20, 8, 2, joint=True)])
    np.testing.assert_array_equal(rest, given[40:])


def test_bad_arguments(arrays):
    with pytest.raises(ValueError, match="`context_every` must divide `period`"):
        rotating(arrays, period=10, context_every=3)
    with pytest.raises(ValueError, match="Did you mean 'mixture'"):
        rotating(arrays, assignment="mixtur")
    with pytest.raises(ValueError, match="`cycles` must be a positive integer"):
        rotating(arrays, cycles=0)
    flat = tuple((x.reshape(len(x), -1), y) for x, y in arrays)
    with pytest.raises(ValueError, match=r"shape \(height, width, channels\)"):
        rotating(flat)
