"""Blocks that call the layers inside them in loops, or once more for gradients."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras import layers
from keras import ops
from small_models import draw_weights

import keras_psp

NUM_TASKS = 3
TASKS = np.arange(6, dtype="int32") % NUM_TASKS
X = np.random.default_rng(0).normal(size=(6, 6, 4)).astype("float32")


def scan(layer, x):
    steps = ops.transpose(x, (1, 0, 2))
    # TensorFlow expects steps of the carry's shape.
    _, y = ops.scan(lambda carry, step: (carry, layer(step)), x[:, 0], steps)
    return ops.transpose(y, (1, 0, 2))


LOOPS = {
    "steps": scan,
    # One entry, as what is for all examples has; but it is one of them.
    "examples": lambda layer, x: ops.map(lambda one: layer(one[None])[0], x),
    "mapped": lambda layer, x: ops.vectorized_map(lambda one: layer(one[None])[0], x),
    "again": lambda layer, x: ops.fori_loop(0, 2, lambda i, state: layer(state), x),
}


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Loop(layers.Layer):
    """Calls a layer on each step, on each example, or again and again."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind
        self.inside = layers.Dense(4, "tanh", name="inside")

    def build(self, shape):
        self.inside.build(shape)

    def call(self, x):
        return LOOPS[self.kind](self.inside, x)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


def build(block):
    inputs = keras.Input((6, 4), name="x")
    y = layers.Flatten()(block(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(y))


def ask(model, task):
    task = np.broadcast_to(np.asarray(task, "int32"), len(X))
    return model.predict({"x": X, "task": task}, verbose=0)


@pytest.mark.parametrize("kind", LOOPS)
def test_each_example_is_computed_for_its_own_task(kind):
    one = keras_psp.convert(build(Loop(kind, name="block")), NUM_TASKS)
    draw_weights(one)
    mixed = ask(one, TASKS)
    for task in range(NUM_TASKS):
        plain = keras_psp.extract(one, task)
        expected = plain.predict(X, verbose=0)
        np.testing.assert_allclose(ask(one, task), expected, atol=1e-5)
        own = TASKS == task
        np.testing.assert_allclose(mixed[own], expected[own], atol=1e-5)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Again(layers.Layer):
    """Computes a layer once more for gradients."""

    def __init__(self, again=False, **kwargs):
        super().__init__(**kwargs)
        self.again = again
        self.inside = layers.Dense(4, "tanh", name="inside")

    def build(self, shape):
        self.inside.build(shape)

    def call(self, x):
        return keras.remat(self.inside)(x) if self.again else self.inside(x)

    def get_config(self):
        return {**super().get_config(), "again": self.again}


def train(model):
    model.compile(keras.optimizers.SGD(0.1), "mse")
    # The task of a scope around it is another one.
    with keras_psp.task(0):
        model.fit({"x": X, "task": TASKS % 2 + 1}, X[:, 0, :2], verbose=0)
    return ask(model, TASKS)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras' own Dense cannot")
def test_what_is_computed_again_for_gradients_knows_its_task_or_is_named():
    plain = draw_weights(keras_psp.convert(build(Again(name="block")), NUM_TASKS))
    weights = plain.get_weights()
    expected = train(plain)

    with keras.RematScope(mode="full"):
        whole = keras_psp.convert(build(Again(name="block")), NUM_TASKS)
    whole.set_weights(weights)
    np.testing.assert_allclose(train(whole), expected, atol=1e-5)

    inside = keras_psp.convert(build(Again(again=True, name="block")), NUM_TASKS)
    inside.set_weights(weights)
    if BACKEND == "jax":  # Which traces the gradients inside the scope.
        np.testing.assert_allclose(train(inside), expected, atol=1e-5)
        return
    with pytest.raises(ValueError, match="scope has ended.*'block/inside'"):
        train(inside)
    for weight, old in zip(inside.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, old)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Windows(layers.Layer):
    """Normalizes all steps of all examples, as if each were one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(momentum=0.5, name="norm")

    def build(self, shape):
        self.norm.build((None, shape[-1]))

    def call(self, x, training=None):
        y = self.norm(ops.reshape(x, (-1, 4)), training=training)
        return ops.reshape(y, (-1, 6, 4))


def test_statistics_in_a_block_are_of_the_tasks_own_examples():
    def trained(task):
        of_task = np.isin(TASKS, task)
        model = keras_psp.convert(build(Windows(name="block")), NUM_TASKS)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        x = (X + 9 * TASKS[:, None, None])[of_task]
        model.fit({"x": x, "task": TASKS[of_task]}, x[:, 0, :2], verbose=0)
        return keras.ops.convert_to_numpy(model.get_layer("block").norm.moving_mean)

    found = trained([0, 2])
    for task in (0, 2):
        np.testing.assert_allclose(found[task], trained([task])[task], rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0)
