import numpy as np
import pytest
from conftest import BACKEND

import keras_psp

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's branches")


@pytest.mark.parametrize("index", [[1, 1], [0, 2]])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_branch_may_have_a_sparse_gradient(index, jit_compile):
    """As `ops.take()` has in contexts of one's own."""
    import tensorflow as tf

    from keras_psp._core.tensorflow_branch import cond

    bank = tf.Variable(np.arange(6.0).reshape(3, 2))

    @tf.function(jit_compile=jit_compile)
    def gradient(index):
        with tf.GradientTape() as tape:
            y = cond(
                tf.reduce_all(index == index[0]),
                lambda: tf.gather(bank, index),
                lambda: tf.matmul(tf.one_hot(index, 3, dtype=bank.dtype), bank),
            )
            loss = tf.reduce_sum(y * y)
        return tf.convert_to_tensor(tape.gradient(loss, bank))

    expected = np.zeros((3, 2))
    np.add.at(expected, index, 2 * bank.numpy()[index])
    np.testing.assert_allclose(gradient(tf.constant(index)), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_for_xla_are_made_where_a_model_is_compiled_by_it(
    jit_compile, monkeypatch
):
    """They compute a branch twice: a convolution would take nearly twice as long."""
    from keras_psp._core import tensorflow_branch

    cond, called = tensorflow_branch.cond, []

    def count(*args):
        called.append(args)
        return cond(*args)

    monkeypatch.setattr(tensorflow_branch, "cond", count)
    model = keras_psp.models.mlp((4,), 3, num_tasks=2, units=8, depth=1, head="multi")
    model.compile("sgd", "mse", jit_compile=jit_compile)
    x = {"image": np.ones((4, 4), "float32"), "task": np.array([0, 1, 1, 0])}
    model.fit(x, np.ones((4, 3)), verbose=0)
    assert bool(called) == jit_compile
