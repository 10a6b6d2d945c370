import functools

import keras
import layer_checks
import numpy as np
import pytest
from conftest import once
from context_reference import KINDS
from context_reference import make
from context_reference import matrix
from layer_checks import draw
from layer_checks import to_numpy

import keras_psp
from keras_psp import contexts

SHAPES = ((10, 6), (10, 3, 6), (10, 2, 3, 6), (10, 2, 1, 3, 6))


def reference(context, x, k):
    return x @ matrix(context, k)


# What a family computes may differ between backends. The rest is its base class's, and
# each way of storing contexts has a kind here that is tested with all on each of them.
COMPUTED = (
    layer_checks.mixed_tasks_equal_reference,
    layer_checks.compiled_equals_eager_and_knows_no_other_task,
)
EVERYWHERE = ("binary", "binary-seed", "complex-learnable", "permutation")


def cases():
    """Every kind of context with one rank of the inputs, the simplest with all."""
    for check in layer_checks.CHECKS:
        for kind in KINDS:
            everywhere = check in COMPUTED or kind in EVERYWHERE
            values = kind, SHAPES[1], check
            yield values if everywhere else once(*values)
    for check in COMPUTED:
        yield from (("binary", shape, check) for shape in SHAPES if shape != SHAPES[1])


@pytest.mark.parametrize(
    "kind, shape, check", [*cases()], ids=lambda x: getattr(x, "__name__", str(x))
)
def test_layer(kind, shape, check):
    check(functools.partial(make, kind), reference, shape)


def test_kernel_of_bad_task_or_shape_is_refused():
    context = make("binary")
    with pytest.raises(ValueError, match="task=5"):
        context.bind_kernel(np.ones((6, 4)), 5)
    with pytest.raises(TypeError, match="`task` must"):
        context.unbind_kernel(np.ones((6, 4)), 1.0)
    with pytest.raises(ValueError, match="bound to one task"):
        context.bind_kernel(np.ones((6, 4)), np.array([0, 1]))
    with pytest.raises(ValueError, match="bound to one task"):
        context.bind_kernel(np.ones(6), 0)


@pytest.mark.parametrize("width", [0, None])
def test_inputs_of_no_width_are_refused(width):
    with pytest.raises(ValueError, match="must be known, and positive"):
        make("binary").build((None, width))


def test_inputs_of_another_width_are_refused():
    context = make("binary")
    context(np.ones((1, 6), "float32"), 0)
    with pytest.raises(ValueError, match="expected axis -1"):
        context(np.ones((1, 7), "float32"), 0)


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
    with pytest.raises(ValueError, match="Known: binary, complex, .*'binary'?"):
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


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", True])
def test_seed_must_be_a_non_negative_integer(seed):
    error = ValueError if seed == -1 else TypeError
    with pytest.raises(error, match="`seed` must be a non-negative integer"):
        contexts.get("binary", num_tasks=2, seed=seed)


def test_a_family_of_ones_own_needs_three_methods():
    class Unfinished(contexts.Context):
        pass

    context = Unfinished(2)
    for call in (context.bind, context.unbind, context.draw):
        with pytest.raises(NotImplementedError):
            call(np.ones((1, 2)), 0)


@pytest.mark.parametrize("name", ["identity", "permutation", "rotation"])
def test_what_has_nothing_to_learn_says_so(name):
    with pytest.raises(ValueError, match="nothing to learn"):
        contexts.get(name, num_tasks=2, learnable=True)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_reflections_must_be_a_positive_integer(bad):
    error = ValueError if bad in (0, -1) else TypeError
    with pytest.raises(error, match="`reflections` must be a positive integer"):
        contexts.get("householder", num_tasks=2, reflections=bad)


def test_learned_phases_keep_their_precision_in_low_precision():
    # In bfloat16 the thousandth power of a phase would be any phase at all.
    x, _ = draw((10, 6))
    kwargs = {"num_tasks": 1001, "learnable": True}
    exact = contexts.get("powers", **kwargs)(x, 1000)
    low = contexts.get("powers", dtype="mixed_bfloat16", **kwargs)(x, 1000)
    np.testing.assert_allclose(to_numpy(low), to_numpy(exact), atol=0.1)


@keras.saving.register_keras_serializable("tests")
class Halved(contexts.Binary):
    """A family of one's own with another map."""

    def bind(self, inputs, index):
        return 0.5 * super().bind(inputs, index)


def test_a_map_of_ones_own_is_used_beside_a_base():
    base = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    models = [keras.models.clone_model(base) for _ in range(2)]
    one = keras_psp.superpose(models, context=Halved(2), base=base)
    x = np.ones((4, 4), "float32")
    mixed = one.predict({"x": x, "task": np.array([0, 1, 1, 0])}, verbose=0)
    alone = one.predict({"x": x, "task": np.zeros(4, int)}, verbose=0)
    np.testing.assert_allclose(mixed[0], alone[0], rtol=1e-5, atol=1e-5)
