import keras
import layer_checks
import numpy as np
import pytest
from keras import ops

from keras_psp import contexts

SHAPES = ((10, 6), (10, 3, 6), (10, 2, 3, 6))


def signs(context, k):
    """C_k as a matrix."""
    if isinstance(context, contexts.Identity):
        return np.eye(6)
    return np.diag(ops.convert_to_numpy(context.contexts)[k])


def reference(context, x, k):
    return x @ signs(context, k)


def make_binary(**kwargs):
    return contexts.get("binary", num_tasks=layer_checks.NUM_TASKS, **kwargs)


def make_learnable(**kwargs):
    return make_binary(learnable=True, **kwargs)


def make_identity(**kwargs):
    return contexts.get("identity", num_tasks=layer_checks.NUM_TASKS, **kwargs)


MAKERS = (make_binary, make_learnable, make_identity)


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_layer(make, shape, check):
    check(make, reference, shape)


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_kernel_and_inputs_are_bound_alike(make, rng):
    context = make()
    x = rng.normal(size=(2, 6)).astype("float32")
    kernel = rng.normal(size=(6, 4)).astype("float32")
    for k in range(layer_checks.NUM_TASKS):
        bound = context.bind_kernel(kernel, k)  # Builds it, the first time.
        np.testing.assert_allclose(
            ops.convert_to_numpy(context(x, k)) @ kernel,
            x @ ops.convert_to_numpy(bound),
            rtol=1e-5,
            atol=1e-5,
        )
        unbound = ops.convert_to_numpy(context.unbind_kernel(bound, k))
        np.testing.assert_array_equal(unbound, kernel)
        matrix = signs(context, k)
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(6))


def test_kernel_of_bad_task_or_shape_is_refused():
    context = make_binary()
    with pytest.raises(ValueError, match="task=5"):
        context.bind_kernel(np.ones((6, 4)), 5)
    with pytest.raises(TypeError, match="`task` must"):
        context.unbind_kernel(np.ones((6, 4)), 1.0)
    with pytest.raises(ValueError, match="bound to one task"):
        context.bind_kernel(np.ones((6, 4)), np.array([0, 1]))
    with pytest.raises(ValueError, match="bound to one task"):
        context.bind_kernel(np.ones(6), 0)


def test_inputs_of_another_width_are_refused():
    context = make_binary()
    context(np.ones((1, 6), "float32"), 0)
    with pytest.raises(ValueError, match="expected axis -1"):
        context(np.ones((1, 7), "float32"), 0)


def test_signs_are_the_same_for_ever_and_everywhere():
    context = contexts.get("binary", num_tasks=3, seed=7)
    context.build((None, 8))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(context.contexts),
        [
            [1, -1, -1, -1, 1, -1, 1, 1],
            [-1, 1, -1, -1, 1, -1, 1, -1],
            [1, 1, 1, -1, -1, 1, -1, 1],
        ],
    )


def test_more_tasks_leave_the_first_ones_as_they_are():
    few, many = (contexts.get("binary", num_tasks=n) for n in (3, 30))
    few.build((None, 10))
    many.build((None, 10))
    first = ops.convert_to_numpy(many.contexts)[:3]
    np.testing.assert_array_equal(ops.convert_to_numpy(few.contexts), first)


def test_signs_are_random():
    context = contexts.get("binary", num_tasks=200)
    context.build((None, 784))
    bank = ops.convert_to_numpy(context.contexts).astype("float64")
    overlap = (bank @ bank.T / 784)[np.triu_indices(200, k=1)]
    assert abs(bank.mean()) < 0.01
    assert abs((overlap**2).mean() * 784 - 1) < 0.05
    other = contexts.get("binary", num_tasks=200, seed=1)
    other.build((None, 784))
    assert abs((bank * ops.convert_to_numpy(other.contexts)).mean()) < 0.01


def test_cost_is_what_the_weights_weigh():
    binary, learnable, identity = (make() for make in MAKERS)
    for context in (binary, learnable, identity):
        context.build((None, 6))
    assert keras.backend.standardize_dtype(binary.contexts.dtype) == "int8"
    assert (binary.numbers_per_task, binary.bits_per_task) == (6, 48)
    assert (learnable.numbers_per_task, learnable.bits_per_task) == (6, 192)
    assert (identity.numbers_per_task, identity.bits_per_task) == (0, 0)


def test_get_takes_name_config_and_context():
    context = contexts.get("binary", num_tasks=4, seed=3)
    assert (type(context), context.num_tasks, context.seed) == (contexts.Binary, 4, 3)
    assert contexts.get(context) is context
    again = contexts.get(keras.saving.serialize_keras_object(context), num_tasks=4)
    assert again.get_config() == context.get_config()


@pytest.mark.parametrize("num_tasks", [0, -3])
def test_num_tasks_must_be_positive(num_tasks):
    message = f"positive integer. Received: num_tasks={num_tasks}"
    with pytest.raises(ValueError, match=message):
        contexts.get("binary", num_tasks=num_tasks)


@pytest.mark.parametrize("num_tasks", [2.0, "2", True, [2]])
def test_num_tasks_must_be_an_integer(num_tasks):
    with pytest.raises(TypeError, match="positive integer. Received: num_tasks="):
        contexts.get("binary", num_tasks=num_tasks)


def test_get_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="Known: binary, identity.*'binary'?"):
        contexts.get("binry", num_tasks=2)
    with pytest.raises(ValueError, match="`num_tasks` must be given"):
        contexts.get("binary")
    with pytest.raises(TypeError, match="of type int"):
        contexts.get(3, num_tasks=2)
    with pytest.raises(TypeError, match="of type type"):
        contexts.get(contexts.Binary, num_tasks=2)
    with pytest.raises(TypeError, match="of type dict"):
        dense = keras.layers.Dense(1)
        contexts.get(keras.saving.serialize_keras_object(dense), num_tasks=2)
    with pytest.raises(ValueError, match="num_tasks=3, and a context of 4 tasks"):
        contexts.get(contexts.Binary(4), num_tasks=3)
    with pytest.raises(ValueError, match="nothing to learn"):
        contexts.get("identity", num_tasks=2, learnable=True)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", True])
def test_seed_must_be_a_non_negative_integer(seed):
    with pytest.raises(ValueError, match="`seed` must be a non-negative integer"):
        contexts.get("binary", num_tasks=2, seed=seed)


def test_a_family_of_ones_own_needs_three_methods():
    class Unfinished(contexts.Context):
        pass

    context = Unfinished(2)
    for call in (context.bind, context.unbind):
        with pytest.raises(NotImplementedError):
            call(np.ones((1, 2)), 0)
    with pytest.raises(NotImplementedError):
        _ = context.numbers_per_task
