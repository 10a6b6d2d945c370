import keras
import numpy as np
import pytest
from context_reference import KINDS
from context_reference import make
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp import contexts
from keras_psp.layers import PSPDense
from keras_psp.models import TaskModel
from keras_psp.models import mlp


@pytest.mark.parametrize("kind", KINDS)
def test_more_tasks_leave_the_first_ones_as_they_are(kind):
    x, task = draw((10, 3, 6))
    context, large = make(kind), make(kind, NUM_TASKS + 3)
    before = to_numpy(context(x, task))
    paths = [v.path for v in context.weights]
    assert context.add_tasks(2).add_tasks(np.int64(1)) is context
    assert context.num_tasks == context.get_config()["num_tasks"] == NUM_TASKS + 3
    assert [v.path for v in context.weights] == paths
    trainable = len(paths) if context.learnable else 0
    assert len(context.trainable_weights) == trainable
    np.testing.assert_array_equal(to_numpy(context(x, task)), before)
    # And are what they had been from the start.
    np.testing.assert_array_equal(
        to_numpy(context(x, task + 3)), to_numpy(large(x, task + 3))
    )
    with pytest.raises(ValueError, match=r"\[0, 8\)"):
        context(x, 8)


def test_learned_contexts_stay_learned():
    context = make("binary-learnable")
    context.build((None, 6))
    learned = np.random.default_rng(0).normal(size=(NUM_TASKS, 6)).astype("float32")
    context.contexts.assign(learned)
    context.add_tasks(2)
    bank = to_numpy(context.contexts)
    np.testing.assert_array_equal(bank[:NUM_TASKS], learned)
    np.testing.assert_array_equal(np.abs(bank[NUM_TASKS:]), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_grows_and_is_saved(kind, tmp_path):
    x, task = draw((10, 6))
    layer = PSPDense(3, context=make(kind))
    model = functional(layer, x.shape)
    before = to_numpy(layer(x, task))
    assert model.add_tasks(3) is model and model.num_tasks == NUM_TASKS + 3
    np.testing.assert_array_equal(to_numpy(layer(x, task)), before)
    model.save(tmp_path / "grown.keras")
    again = keras.saving.load_model(tmp_path / "grown.keras").layers[-1]
    np.testing.assert_array_equal(to_numpy(again(x, task)), before)
    np.testing.assert_array_equal(
        to_numpy(again(x, task + 3)), to_numpy(layer(x, task + 3))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_shrinks_to_what_it_was(kind):
    x, task = draw((10, 6))
    layer = PSPDense(3, context=make(kind), bias_per_task=True)
    model = functional(layer, x.shape)
    inputs = {"image": x, "task": task}
    before = to_numpy(model(inputs))
    config, paths = layer.get_config(), [w.path for w in layer.weights]
    weights = [np.array(w) for w in layer.get_weights()]
    assert model.add_tasks(3).remove_tasks(n=3) is model
    assert model.num_tasks == NUM_TASKS and layer.get_config() == config
    assert [w.path for w in layer.weights] == paths
    for a, b in zip(layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(to_numpy(model(inputs)), before)
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        layer(x, NUM_TASKS)


@pytest.mark.parametrize("kind", ["binary", "binary-seed", "rotation", "powers"])
def test_what_was_compiled_before_knows_the_new_tasks(kind):
    x, task = draw((10, 6))
    layer = PSPDense(3, context=make(kind))
    model = functional(layer, x.shape)
    inputs, more = {"image": x, "task": task}, {"image": x, "task": task + 3}
    before = model.predict(inputs, verbose=0)
    model.add_tasks(3)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), before)
    np.testing.assert_allclose(
        model.predict(more, verbose=0), to_numpy(layer(x, task + 3)), atol=1e-5
    )


def test_a_model_may_be_trained_on():
    x, task = draw((10, 7))
    learned = mlp((7,), 3, NUM_TASKS, units=8, depth=1, learnable=True)
    fixed = mlp((7,), 3, NUM_TASKS, units=8, depth=1)
    for model in (learned, fixed):
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        inputs = {"image": x, "task": task}
        model.fit(inputs, np.zeros(10), verbose=0, epochs=3)
        model.add_tasks(3)
        assert int(model.optimizer.iterations) == 3
        more = {"image": x, "task": task + 3}
        first = model.evaluate(more, np.zeros(10), verbose=0)
        model.fit(more, np.zeros(10), verbose=0, epochs=3)
        assert model.evaluate(more, np.zeros(10), verbose=0) < first


def test_layers_that_share_a_context_grow_once():
    context = contexts.Binary(2)
    inputs = keras.Input((4,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = PSPDense(4, context=context)(inputs, task)
    model = TaskModel(
        {"image": inputs, "task": task}, PSPDense(4, context=context)(x, task)
    )
    model.add_tasks(3)
    assert model.num_tasks == context.num_tasks == 5


@pytest.mark.parametrize("bad, error", [(0, ValueError), (-1, ValueError)])
def test_n_must_be_positive(bad, error):
    model = mlp((7,), 3, 2, units=8, depth=1)
    for grow in (model.add_tasks, contexts.Binary(2).add_tasks):
        with pytest.raises(error, match=f"`n` must be .*n={bad}"):
            grow(bad)
    with pytest.raises(TypeError, match="`n` must be"):
        model.add_tasks(1.5)
    for shrink in (model.remove_tasks, contexts.Binary(2).remove_tasks):
        with pytest.raises(ValueError, match="leave at least one of 2 tasks.*n=2"):
            shrink(n=2)
        with pytest.raises(TypeError, match="positional argument"):
            shrink(1)  # It could be meant for task 1.


def test_what_cannot_grow_says_so_and_stays_as_it_was():
    # Of the two layers only the second, of eight inputs, is full.
    model = mlp((12,), 3, 8, units=8, depth=1, context="hadamard")
    before = [np.array(w) for w in model.get_weights()]
    with pytest.raises(ValueError, match="8 inputs hold at most 8 tasks.*num_tasks=9"):
        model.add_tasks(1)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    soft = mlp((12,), 3, 8, units=8, depth=1, soft=True)
    with pytest.raises(ValueError, match="soft contexts .* can neither grow"):
        soft.add_tasks(1)


def test_more_tasks_than_a_family_holds_are_refused_when_built():
    with pytest.raises(ValueError, match="7 inputs hold at most 8 tasks"):
        contexts.Hadamard(9).build((None, 7))
    with pytest.raises(ValueError, match="hold at most 1 tasks"):
        PSPDense(2, num_tasks=2, context="hadamard")(np.ones((1, 1), "float32"), 0)
