"""What is true of every family, whatever the width, the seed, the number of tasks."""

import keras
import numpy as np
import pytest
from conftest import once
from context_reference import KINDS
from context_reference import make
from context_reference import matrix
from context_reference import numbers
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from layer_checks import draw
from layer_checks import to_numpy

from keras_psp import contexts
from keras_psp.layers import PSPDense
from keras_psp.models import TaskModel

BINDINGS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "width": st.integers(1, 70),
        "num_tasks": st.integers(1, 6),
        "seed": st.integers(0, 2**70),
        "rank": st.integers(2, 5),
    }
)


@given(case=BINDINGS)
def test_orthogonal_maps_of_inputs_and_kernels(case):
    width, num_tasks = case["width"], case["num_tasks"]
    context = make(case["kind"], num_tasks, seed=case["seed"])
    limit = context.max_num_tasks(width)
    if limit is not None and num_tasks > limit:
        with pytest.raises(ValueError, match=f"at most {limit} tasks"):
            context.build((None, width))
        return
    context.build((None, width))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *[1, 2, 1][: case["rank"] - 2], width)).astype("float32")
    kernel = rng.normal(size=(width, 3)).astype("float32")
    task = rng.integers(num_tasks, size=4).astype("int32")
    mixed = to_numpy(context(x, task))
    for i, k in enumerate(task):
        c = to_numpy(context.bind_kernel(np.eye(width, dtype="float32"), k))
        close(c, matrix(context, k))
        close(c @ c.T, np.eye(width))
        bound = context.bind_kernel(kernel, k)
        close(to_numpy(context.unbind_kernel(bound, k)), kernel)
        one = to_numpy(context(x[i : i + 1], int(k)))
        close(mixed[i], one[0])
        close(one @ kernel, x[i : i + 1] @ to_numpy(bound))
        rows, others = map(ops.convert_to_tensor, (kernel.T, np.cos(kernel.T)))
        onto = to_numpy(context.unbind_onto(rows, others, int(k)))
        close(onto, kernel.T @ c.T + np.cos(kernel.T))
    assert context.orthogonality_drift().max() < 1e-5


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [once(kind) if "storage" in KINDS[kind] else kind for kind in KINDS]
)
def test_gradients_equal_finite_differences(kind):
    x, task = draw((10, 4))
    context = make(kind, seed=3)
    inputs = keras.Input((4,), name="image")
    index = keras.Input((), dtype="int32", name="task")
    before = keras.layers.Dense(6, use_bias=False)
    layer = PSPDense(1, context=context, use_bias=False)
    outputs = layer(before(inputs), index)
    model = TaskModel({"image": inputs, "task": index}, outputs)
    model.compile(keras.optimizers.SGD(1.0), "mse")

    def loss(first, second, values):
        bound = [x[i] @ first @ matrix(context, k, values) for i, k in enumerate(task)]
        return ((np.stack(bound) @ second - 1) ** 2).mean()

    start = [to_numpy(before.kernel), to_numpy(layer.kernel)]
    start = [w.astype("float64") for w in start] + [numbers(context)]
    model.fit({"image": x, "task": task}, np.ones((10, 1)), batch_size=10, verbose=0)
    end = [to_numpy(before.kernel), to_numpy(layer.kernel), numbers(context)]
    for n in range(3 if context.learnable else 2):
        expected = np.zeros_like(start[n])
        for i in np.ndindex(start[n].shape):
            values = []
            for shift in (1e-6, -1e-6):
                shifted = [w.copy() for w in start]
                shifted[n][i] += shift
                values.append(loss(*shifted))
            expected[i] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(start[n] - end[n], expected, rtol=1e-3, atol=1e-5)


def bank(kind, num_tasks, width, **kwargs):
    context = make(kind, num_tasks, **kwargs)
    context.build((None, width))
    return numbers(context)


@pytest.mark.parametrize("kind", ["binary", "fast_rotation"])
@pytest.mark.parametrize("width", [784, 1024, 90])
def test_random_signs_overlap_as_random_signs_do(kind, width):
    signs = bank(kind, 300, width)
    width = signs.shape[1]
    overlap = (signs @ signs.T / width)[np.triu_indices(300, k=1)]
    assert abs((overlap**2).mean() * width - 1) < 0.05
    assert abs(overlap.mean()) < 5 / np.sqrt(width * len(overlap))
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    # Nor do the positions, shifted rows, or the signs of another seed.
    across = (signs.T @ signs / 300)[np.triu_indices(width, k=1)]
    assert abs((across**2).mean() * 300 - 1) < 0.05
    other = bank(kind, 300, width // (3 if kind == "fast_rotation" else 1), seed=1)
    shifted = np.roll(signs, 32, axis=1)
    for independent in (other, shifted, np.roll(signs, 1, axis=0)):
        assert abs((signs * independent).mean()) < 5 / np.sqrt(signs.size)


@pytest.mark.parametrize("width", [1, 2, 12, 28, 64, 256, 784])
def test_exact_hadamard_contexts_do_not_overlap(width):
    context = contexts.Hadamard(width)
    assert context.max_overlap(width) == 0
    signs = bank("hadamard", width, width)
    np.testing.assert_array_equal(signs @ signs.T, width * np.eye(width))


@pytest.mark.parametrize("width", [3, 5, 6, 10, 63, 90, 92, 257, 785, 996])
def test_other_hadamard_contexts_overlap_as_little_as_they_say(width):
    context = contexts.Hadamard(2)
    limit = context.max_num_tasks(width)
    signs = bank("hadamard", limit, width)
    overlap = np.abs(signs @ signs.T - width * np.eye(limit)).max() / width
    assert 0 < overlap <= context.max_overlap(width) <= 4 / width
    # No three vectors of signs overlap less, unless width is a multiple of four.
    if width % 4:
        np.testing.assert_allclose(overlap, (1 + (width % 2 == 0)) / width)


def test_rotations_are_haars():
    matrices = bank("rotation", 600, 8)
    determinants = np.linalg.det(matrices)
    np.testing.assert_allclose(np.abs(determinants), 1, atol=1e-5)
    assert abs(determinants.mean()) < 4 / np.sqrt(600)
    # Diaconis and Shahshahani: the mean of tr(Q^j) is 1 for even j, else 0; its
    # variance is j.
    powers = matrices
    for j in range(1, 4):
        traces = np.trace(powers, axis1=1, axis2=2)
        assert abs(traces.mean() - (j % 2 == 0)) < 4 * np.sqrt(j / 600)
        assert abs(traces.var() / j - 1) < 0.25
        powers = powers @ matrices
    # The angles of the eigenvalues of SO(8) have this density (Girko; Katz, Sarnak),
    # and are further apart than independent ones would be.
    angles = np.angle(np.linalg.eigvals(matrices[determinants > 0]))
    upper = np.sort(angles, axis=1)[:, 4:]
    histogram = np.histogram(upper, bins=4, range=(0, np.pi))[0] / upper.size
    points = (np.arange(4000) + 0.5) * np.pi / 4000
    density = 7 / 8 + np.sin(7 * points) / (8 * np.sin(points))
    expected = density.reshape(4, 1000).mean(axis=1) / 4
    np.testing.assert_allclose(histogram, expected, atol=0.02)
    assert np.diff(upper, axis=1).min(axis=1).mean() > 1.5 * np.pi / 4 / 4
    # Every element has variance 1 / M, and none is correlated with its neighbour.
    np.testing.assert_allclose((matrices**2).mean(axis=0), 1 / 8, atol=0.04)
    assert abs((matrices[:, 0] * matrices[:, 1]).mean(axis=0)).max() < 0.03


@pytest.mark.parametrize("kind", ["complex", "powers", "permutation"])
def test_phases_and_permutations_are_random(kind):
    context = make(kind, 200)
    context.build((None, 64))
    maps = np.stack([matrix(context, k) for k in range(1, 200)])
    # What two tasks share of an input is small, and as often positive as negative.
    traces = np.einsum("jmn,kmn->jk", maps, maps)[np.triu_indices(199, k=1)] / 64
    mean, mean_square = {"permutation": (1 / 64, 2 / 64**2)}.get(kind, (0, 1 / 64))
    # Those of powers depend on j - k alone: there are few of them.
    tolerance = 0.5 if kind == "powers" else 0.1
    assert abs(traces.mean() - mean) < tolerance * mean_square**0.5
    assert abs((traces**2).mean() / mean_square - 1) < tolerance


def test_phases_are_powers():
    context = make("powers", 2**20, seed=5)
    context.build((None, 6))
    x, k = np.ones((1, 6), "float32"), 2**20 - 1
    # As exact for the last task as for the first ones.
    once = context(context(x, k - 7), 7)
    np.testing.assert_allclose(to_numpy(context(x, k)), to_numpy(once), atol=1e-5)
    np.testing.assert_array_equal(to_numpy(context(x, 0)), x)


@pytest.mark.parametrize(
    "kind, shape, expected",
    [
        (
            "binary",
            (2, 8),
            [[-1, 1, 1, 1, -1, 1, -1, -1], [-1, -1, -1, -1, 1, -1, -1, 1]],
        ),
        (
            "hadamard",
            (2, 8),
            [[1, 1, -1, -1, -1, -1, 1, 1], [1, -1, -1, 1, 1, -1, -1, 1]],
        ),
        ("permutation", (2, 8), [[6, 3, 4, 0, 2, 7, 5, 1], [4, 3, 2, 5, 1, 6, 7, 0]]),
        (
            "complex-learnable",
            (2, 4),
            [[0.785997987, 2.495767832], [1.732184291, -1.726574183]],
        ),
        ("householder", (1, 3), [[[0.217328042, -0.661290109, 1.211419821]]]),
    ],
)
def test_the_same_for_ever_and_everywhere(kind, shape, expected):
    np.testing.assert_allclose(bank(kind, *shape, seed=7), expected, rtol=1e-6)
