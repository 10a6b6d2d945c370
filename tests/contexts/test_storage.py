import itertools

import keras
import numpy as np
import pytest
from context_reference import KINDS
from context_reference import make
from context_reference import numbers
from layer_checks import to_numpy

from keras_psp import contexts
from keras_psp.contexts._sign_context import STORAGE

COSTS = {  # Of 21 inputs: numbers, bits.
    "identity": (0, 0),
    "binary": (21, 8 * 21),
    "binary-bits": (21, 24),
    "binary-seed": (0, 0),
    "binary-learnable": (21, 32 * 21),
    "hadamard": (21, 8 * 21),
    "hadamard-bits": (21, 24),
    "hadamard-learnable": (21, 32 * 21),
    "complex": (22, 32 * 22),
    "complex-learnable": (11, 32 * 11),
    "powers": (0, 0),
    "powers-learnable": (0, 0),
    "rotation": (21**2, 32 * 21**2),
    "fast_rotation": (63, 8 * 63),
    "fast_rotation-bits": (63, 64),
    "fast_rotation-seed": (0, 0),
    "fast_rotation-learnable": (63, 32 * 63),
    "householder": (21, 32 * 21),
    "householder-3": (63, 32 * 63),
    "householder-learnable": (21, 32 * 21),
    "permutation": (21, 16 * 21),
    "signed_permutation": (21, 16 * 21),
}


def bits(context):
    """What its variables really weigh."""
    return 8 * sum(v.numpy().nbytes for v in context.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_what_the_weights_weigh(kind):
    context, more = make(kind, 7), make(kind, 17)
    for c in (context, more):
        c.build((None, 21))
    assert (context.numbers_per_task, context.bits_per_task) == COSTS[kind]
    assert bits(more) - bits(context) == 10 * context.bits_per_task


@pytest.mark.parametrize("kind", ["binary", "binary-seed", "identity", "complex"])
def test_cost_is_not_known_before_the_width_is(kind):
    context = make(kind)
    for ask in (
        lambda: context.numbers_per_task,
        lambda: context.bits_per_task,
        context.orthogonality_drift,
    ):
        with pytest.raises(ValueError, match="build the context first"):
            ask()


def test_low_precision_is_weighed_and_saved_too(tmp_path):
    inputs = keras.Input((21,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    context = make("complex", dtype="bfloat16")
    model = keras.Model([inputs, task], context(inputs, task))
    assert context.bits_per_task == 16 * 22
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    np.testing.assert_array_equal(numbers(again), numbers(context))
    assert again.bits_per_task == 16 * 22


@pytest.mark.parametrize("width", [1, 8, 33])
@pytest.mark.parametrize("name", ["binary", "hadamard", "fast_rotation"])
def test_every_storage_holds_the_same_signs(name, width):
    x = np.random.default_rng(0).normal(size=(6, 2, width)).astype("float32")
    task = np.array([0, 3, 1, 2, 3, 0]) % min(4, width)
    answers = []
    for storage in STORAGE:
        if name == "hadamard" and storage == "seed":
            continue
        context = contexts.get(name, min(4, width), seed=2**40, storage=storage)
        answers.append([to_numpy(context(x, k)) for k in (task, 0)])
        assert len(context.weights) == (storage != "seed")
    for one, other in itertools.pairwise(answers):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["binary", "fast_rotation"])
def test_a_million_tasks_for_nothing(name):
    context = contexts.get(name, 10**6, storage="seed")
    x = np.ones((4, 50), "float32")
    y = to_numpy(context(x, [0, 999_999, 500_000, 999_999]))
    assert not context.weights
    np.testing.assert_array_equal(y[1], y[3])
    assert not (y[0] == y[1]).all() and not (y[1] == y[2]).all()
    few = contexts.get(name, 3, storage="seed")
    # A product of matrices may be rounded otherwise in a batch of another size.
    np.testing.assert_allclose(to_numpy(few(x[:1], 0)), y[:1], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="task=1000000"):
        context(x, 10**6)


def test_signs_of_many_tasks_differ():
    context = contexts.Binary(2**16)
    context.build((None, 64))
    signs = numbers(context)
    assert len(np.unique(signs, axis=0)) == 2**16
    assert abs(signs.mean(axis=0)).max() < 5 / 2**8  # Every position is fair.
    assert abs(signs.mean(axis=1)).mean() * 8 < 0.85  # As of every task.


def test_bad_storage_is_refused():
    with pytest.raises(ValueError, match="storage='nibbles'"):
        contexts.Binary(2, storage="nibbles")
    for storage in ("bits", "seed"):
        with pytest.raises(ValueError, match=f"learnable=True, storage='{storage}'"):
            contexts.Binary(2, learnable=True, storage=storage)
    with pytest.raises(ValueError, match='storage="seed"'):
        contexts.Hadamard(2, storage="seed")


@pytest.mark.parametrize("name", ["binary", "fast_rotation"])
def test_signs_stay_what_they_are_in_a_compiled_model(name):
    inputs = keras.Input((40,))
    task = keras.Input((), dtype="int32")
    x = np.random.default_rng(0).normal(size=(5, 40)).astype("float32")
    tasks = np.array([0, 4, 999_999, 3, 2])
    answers = []
    for storage in ("bytes", "seed"):
        context = contexts.get(name, 1000 if storage == "bytes" else 10**6)
        config = {**context.get_config(), "storage": storage}
        context = type(context).from_config(config)
        model = keras.Model([inputs, task], context(inputs, task))
        answers.append(model.predict([x, np.minimum(tasks, 999)], verbose=0))
    np.testing.assert_array_equal(*answers)
