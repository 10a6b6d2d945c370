import keras
import numpy as np
import pytest
from context_reference import KINDS
from context_reference import make
from context_reference import matrix
from context_reference import numbers
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import to_numpy

from keras_psp.layers import PSPDense
from keras_psp.models import TaskModel
from keras_psp.models import mlp


@pytest.fixture
def weights(rng):
    return rng.dirichlet(np.ones(NUM_TASKS), size=10).astype("float32")


@pytest.mark.parametrize("kind", KINDS)
def test_all_the_weight_on_one_task_is_that_task(kind):
    x, task = draw((10, 3, 6))
    context = make(kind)
    soft = context(x, np.eye(NUM_TASKS, dtype="float32")[task])
    np.testing.assert_allclose(to_numpy(soft), to_numpy(context(x, task)), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mixture_equals_reference(kind, weights):
    x, _ = draw((10, 3, 6))
    context = make(kind)
    y = to_numpy(context(x, weights))
    for i, w in enumerate(weights):
        if kind.startswith(("complex", "powers")):  # Phases average as phases.
            values = numbers(context)
            if kind == "complex":
                phases = w @ np.arctan2(values[:, 1], values[:, 0])
                values = [[np.cos(phases), np.sin(phases)]]
                expected = matrix(context, 0, np.array(values))
            elif kind == "complex-learnable":
                expected = matrix(context, 0, [w @ values])
            else:
                expected = matrix(context, w @ np.arange(NUM_TASKS))
        else:
            maps = np.stack([matrix(context, k) for k in range(NUM_TASKS)])
            expected = np.tensordot(w, maps, axes=1)
            if kind.startswith("fast_rotation"):
                expected = np.tensordot(w, maps, axes=1)
        np.testing.assert_allclose(y[i], x[i] @ expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "complex", "rotation", "permutation"])
def test_compiled_trained_and_saved(kind, weights, tmp_path):
    x, _ = draw((10, 7))
    inputs = keras.Input((7,), name="image")
    task = keras.Input((NUM_TASKS,), name="task")
    layer = PSPDense(3, context=make(kind))
    model = TaskModel({"image": inputs, "task": task}, layer(inputs, task))
    given = {"image": x, "task": weights}
    model.compile("sgd", "mse")
    eager = to_numpy(layer(x, weights))
    np.testing.assert_allclose(model.predict(given, verbose=0), eager, atol=1e-5)
    one = {name: value[:1] for name, value in given.items()}
    np.testing.assert_allclose(model.predict(one, verbose=0), eager[:1], atol=1e-5)
    model.fit(given, np.ones((10, 3)), verbose=0)
    model.save(tmp_path / "soft.keras")
    again = keras.saving.load_model(tmp_path / "soft.keras")
    np.testing.assert_array_equal(
        again.predict(given, verbose=0), model.predict(given, verbose=0)
    )


def test_mlp_takes_soft_contexts_with_the_same_weights():
    x, task = draw((10, 7))
    hard = mlp((7,), 3, NUM_TASKS, units=8)
    soft = mlp((7,), 3, NUM_TASKS, units=8, soft=True)
    one_hot = np.eye(NUM_TASKS, dtype="float32")[task]
    np.testing.assert_allclose(
        soft.predict({"image": x, "task": one_hot}, verbose=0),
        hard.predict({"image": x, "task": task}, verbose=0),
        atol=1e-5,
    )
    with pytest.raises(TypeError, match="takes soft contexts.*int"):
        soft.predict({"image": x, "task": task}, verbose=0)
    with pytest.raises(TypeError, match="because it is an index.*float32"):
        hard.predict({"image": x, "task": one_hot}, verbose=0)


def test_weights_of_the_wrong_width_are_refused():
    x, _ = draw((10, 7))
    context = make("binary")
    for n in (NUM_TASKS - 1, NUM_TASKS + 1):
        message = rf"a weight for each of {NUM_TASKS} tasks.*\(10, {n}\)"
        with pytest.raises(ValueError, match=message):
            context(x, np.ones((10, n), "float32"))
    with pytest.raises(ValueError, match="one index for each example"):
        context(x, np.ones((9, NUM_TASKS), "float32"))
    # An index of the wrong dtype is no weight.
    with pytest.raises(TypeError, match="integer dtype"):
        context(x, np.ones((10, 1), "float32"))
    soft = mlp((7,), 3, NUM_TASKS, units=8, soft=True)
    with pytest.raises(ValueError, match="a weight for each of 5 tasks"):
        soft.predict({"image": x, "task": np.ones((10, 4), "float32")}, verbose=0)
