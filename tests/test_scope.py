"""`keras_psp.task(...)`: layers take their task from the scope they run in."""

import copy
import threading

import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras import ops

import keras_psp
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense

X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Block(keras.Model):
    """A model of a user's own, whose layers are called without a task."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = PSPDense(4, num_tasks=3)
        self.own = TaskDense(4, num_tasks=3)

    def call(self, inputs):
        return self.own(ops.relu(self.hidden(inputs)))


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Inside(keras.Model):
    """Layers of a `Sequential` inside, which opens the scope itself or leaves it."""

    def __init__(self, opens, **kwargs):
        super().__init__(**kwargs)
        self.opens = opens
        self.inside = keras.Sequential([PSPDense(4, num_tasks=3), TaskDense(2, 3)])

    def call(self, inputs):
        if not self.opens:
            return self.inside(inputs["image"])
        with keras_psp.task(inputs["task"]):
            return self.inside(inputs["image"])

    def get_config(self):
        return {"opens": self.opens}


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(ops.convert_to_tensor(tensor)))


def make_block():
    block = Block()
    with keras_psp.task(0):
        block(X)
    block.own.kernel.assign(np.random.default_rng(1).normal(size=(3, 4, 4)))
    want = [
        to_numpy(block.own(ops.relu(block.hidden(X, task)), task)) for task in range(3)
    ]
    return block, want


def compiled(function):
    """The function, compiled by the backend's own compiler."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import torch

    return torch.compile(torch.no_grad()(lambda x: function(x)), backend="eager")


def test_two_scopes_around_one_model_are_two_tasks():
    block, want = make_block()
    call = compiled(block)
    x = ops.convert_to_tensor(X)
    for task in (0, 1, 2, 1):
        with keras_psp.task(task):
            for answers in (block(X), block.predict(X, verbose=0), call(x)):
                np.testing.assert_allclose(to_numpy(answers), want[task], atol=1e-5)


def test_a_task_for_each_example():
    block, want = make_block()
    tasks = [0, 1, 2, 0, 1, 2]
    expected = np.stack([want[task][i] for i, task in enumerate(tasks)])
    with keras_psp.task(2):
        block.predict(X, verbose=0)
    for given in (tasks, np.array(tasks), ops.array(tasks), np.array(tasks)[:, None]):
        with keras_psp.task(given):
            np.testing.assert_allclose(to_numpy(block(X)), expected, atol=1e-5)
            answers = block.predict(X, verbose=0)
        np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_a_fit_trains_the_task_of_the_scope():
    block, _ = make_block()
    block.compile("sgd", "mse")
    for task in (0, 1):
        before = to_numpy(block.own.kernel).copy()
        with keras_psp.task(task):
            block.fit(X, np.ones((6, 4)), verbose=0)
            block.evaluate(X, np.ones((6, 4)), verbose=0)
        moved = (to_numpy(block.own.kernel) != before).any(axis=(1, 2))
        assert moved.tolist() == [k == task for k in range(3)]


def test_the_inner_scope_counts():
    block, want = make_block()
    with keras_psp.task(0):
        with keras_psp.task(1):
            np.testing.assert_allclose(to_numpy(block(X)), want[1], atol=1e-5)
        np.testing.assert_allclose(to_numpy(block(X)), want[0], atol=1e-5)
        hidden = to_numpy(block.hidden(X, 2))  # What a layer is given counts more.
    np.testing.assert_array_equal(hidden, to_numpy(block.hidden(X, 2)))


def test_a_scope_within_a_compiled_function():
    block, want = make_block()

    def call(x):
        with keras_psp.task(1):
            return block(x)

    call = compiled(call)
    with keras_psp.task(2):
        answers = to_numpy(call(ops.convert_to_tensor(X)))
    np.testing.assert_allclose(answers, want[1], atol=1e-5)


def test_threads_have_scopes_of_their_own():
    block, want = make_block()
    found, barrier = {}, threading.Barrier(2, timeout=60)

    def run(task):
        with keras_psp.task(task):
            barrier.wait()
            found[task] = [to_numpy(block(X)) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(task,)) for task in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for task in (1, 2):
        for answers in found[task]:
            np.testing.assert_allclose(answers, want[task], atol=1e-5)
    with keras_psp.task(1):
        failed = []
        thread = threading.Thread(
            target=lambda: failed.append(pytest.raises(ValueError, block, X))
        )
        thread.start()
        thread.join()
    assert len(failed) == 1


def test_a_functional_model_keeps_no_task(tmp_path):
    image = keras.Input((8,))
    with keras_psp.task(0):
        x = PSPDense(4, num_tasks=3)(image)
        outputs = TaskBatchNormalization(3)(x)
    model = keras.Model(image, outputs)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for task in (1, 2):
        with keras_psp.task(task):
            answers = model.predict(X, verbose=0)
            np.testing.assert_allclose(again.predict(X, verbose=0), answers, atol=1e-6)
        expected = model.layers[-1](model.layers[-2](X, task), task)
        np.testing.assert_allclose(answers, to_numpy(expected), atol=1e-5)
    with pytest.raises(ValueError, match="no scope"):
        model(X)


@pytest.mark.parametrize("opens", [False, True])
def test_layers_inside_are_built_and_loaded_without_a_task(opens, tmp_path):
    model, tasks = Inside(opens), np.array([0, 1, 2, 0, 1, 2])

    def predict(model, tasks):
        with keras_psp.task(0 if opens else tasks):  # The inner one counts.
            return model.predict({"image": X, "task": tasks}, verbose=0)

    predict(model, tasks)
    hidden, last = model.inside.layers
    last.kernel.assign(np.random.default_rng(1).normal(size=(3, 4, 2)))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each_task in (tasks, tasks[::-1].copy()):
        want = to_numpy(last(hidden(X, each_task), each_task))
        for each in (model, again):
            np.testing.assert_allclose(predict(each, each_task), want, atol=1e-5)


def test_a_sequential_model_is_copied_without_a_scope():
    model = keras.Sequential([keras.Input((8,)), PSPDense(4, num_tasks=3)])
    for other in (copy.deepcopy(model), keras.models.clone_model(model)):
        other.set_weights(model.get_weights())
        with keras_psp.task(1):
            np.testing.assert_array_equal(to_numpy(other(X)), to_numpy(model(X)))
    with pytest.raises(ValueError, match="no scope"):
        model(X)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras' own Dense cannot")
def test_layers_are_computed_again_for_gradients():
    with keras.RematScope(mode="full"):
        again = PSPDense(4, num_tasks=3)
    layer = PSPDense.from_config(again.get_config())
    models = [keras.Sequential([keras.Input((8,)), each]) for each in (layer, again)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile("sgd", "mse")
        for task in (0, 2):
            with keras_psp.task(task):
                model.fit(X, X[:, :4], verbose=0)
    np.testing.assert_allclose(to_numpy(layer.kernel), to_numpy(again.kernel), 1e-5)


def test_attention_takes_its_task_from_the_scope():
    layer = PSPMultiHeadAttention(2, 4, num_tasks=3)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    expected = to_numpy(layer(x, x, task=2))
    with keras_psp.task(2):
        np.testing.assert_array_equal(to_numpy(layer(x, x)), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's compiled functions")
def test_tensorflow_traces_once_for_all_tasks():
    import tensorflow as tf

    block, want = make_block()
    traces = []

    @tf.function(autograph=False)
    def inner(x):
        traces.append(1)
        return block(x)

    outer = tf.function(inner, autograph=False, jit_compile=True)
    for task in (0, 1, 2):
        with keras_psp.task(task):
            np.testing.assert_allclose(inner(X), want[task], atol=1e-5)
            np.testing.assert_allclose(outer(X), want[task], atol=1e-5)
    assert len(traces) <= 2
    # The scope is read, and checked, at each call: NaN might become a word later.
    with keras_psp.task(7):
        with pytest.raises(ValueError, match=r"must lie in \[0, 3\)"):
            inner(X)
    with pytest.raises(ValueError, match="no scope"):
        inner(X)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (1.5, TypeError, "1.5"),
        (True, TypeError, "True"),
        (["legal", 1], TypeError, "strings"),
        (None, TypeError, "None"),
        (np.ones(6, "float32"), TypeError, "float32"),
        (-1, ValueError, "task=-1"),
        ([0, -2], ValueError, "task=-2"),
        (np.ones((6, 2), "int32"), ValueError, "shape"),
    ],
)
def test_a_scope_takes_tasks_alone(bad, error, message):
    with pytest.raises(error, match=message):
        with keras_psp.task(bad):
            raise AssertionError("opened")


def test_a_name_needs_tasks_with_names():
    layer = keras_psp.layers.PSPDense(2, num_tasks=3)
    with keras_psp.task("legal"):
        with pytest.raises(ValueError, match="These tasks have no names"):
            layer(np.ones((1, 4), "float32"))
    model = keras_psp.models.mlp((4,), 2, num_tasks=["legal", "medical"], units=3)
    data = {"image": np.ones((2, 4), "float32"), "task": ["medical", "legal"]}
    by_index = {**data, "task": np.array([1, 0])}
    np.testing.assert_array_equal(
        model.predict(data, verbose=0), model.predict(by_index, verbose=0)
    )
    with pytest.raises(ValueError, match="Unknown task.*'poetic'"):
        model.predict({**data, "task": ["legal", "poetic"]}, verbose=0)


def test_outside_of_a_scope_and_beyond_the_tasks():
    block, _ = make_block()
    with pytest.raises(ValueError, match=r"with keras_psp\.task"):
        block(X)
    for task in (3, 2**40):
        with keras_psp.task(task):
            with pytest.raises(ValueError, match=r"\[0, 3\)"):
                block(X)
    with keras_psp.task([0, 1]):
        with pytest.raises(ValueError, match="one index for each example"):
            block(X)


def test_every_task_of_a_scope_is_checked():
    block, _ = make_block()
    scope = keras_psp.task(np.array([0, 1, 2, 0, 1, 9]))
    with scope, pytest.raises(ValueError, match=r"`task` must lie in \[0, 3\)"):
        block(X)
