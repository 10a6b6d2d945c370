"""What every layer that takes a task must do, whatever else it does.

`make` builds the layer anew, `reference(layer, x, k)` is what it computes of a batch
`x` of task k, in NumPy.
"""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras import ops

from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.models import TaskModel

NUM_TASKS = 5
TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
UNKNOWN = (-1, NUM_TASKS, 127, -128, 1000, 2**31 - 1, -(2**31))


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class SelfAttention(PSPMultiHeadAttention):
    """With one input, as the checks call a layer."""

    def __call__(self, query, value_or_task=None, **kwargs):
        if "task" in kwargs:  # Keras calls it once more, as it was called.
            return super().__call__(query, value_or_task, **kwargs)
        return super().__call__(query, query, task=value_or_task)

    def compute_output_shape(self, query_shape, value_shape=None, key_shape=None):
        return super().compute_output_shape(query_shape, query_shape)


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def draw(shape, seed=0):
    """Inputs and tasks; every task occurs, in no order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype("float32")
    task = rng.permutation(np.arange(shape[0]) % NUM_TASKS).astype("int32")
    return x, task


def fill(layer, shape):
    """Builds a layer and gives all weights but the contexts numbers of their own."""
    layer.build(shape)
    fill_weights(layer)
    return layer


def fill_weights(layer, seed=1):
    """Gives numbers to all weights of a built layer but signs and other contexts."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.name == "contexts":
            continue
        if weight.dtype == "uint8":
            weight.assign(rng.integers(0, 256, size=weight.shape))
        else:  # Scales belong to codes of up to 127.
            size = 0.02 if weight.name.endswith("scale") else 0.5
            weight.assign(rng.normal(scale=size, size=weight.shape))


def shares(layer, k):
    """What task k has beside the superposed kernel: `W_0 + A_k B_k` and a bias."""
    base = 0.0 if layer.base is None else to_numpy(layer.base_kernel)
    if layer.low_rank is not None:
        first, second = layer.low_rank.first, layer.low_rank.second
        own = to_numpy(first)[k] @ to_numpy(second)[k]
        base = base + to_numpy(layer.kernel_of_rows(own))
    if layer.task_bias is not None:
        return base, to_numpy(layer.task_bias.bias)[k]
    return base, 0.0 if layer.bias is None else to_numpy(layer.bias)


def functional(layer, shape, batch=None):
    """A model of the layer alone."""
    inputs = keras.Input(batch_shape=(batch, *shape[1:]), name="image")
    task = keras.Input(batch_shape=(batch,), dtype="int32", name="task")
    return TaskModel({"image": inputs, "task": task}, layer(inputs, task))


def mixed_tasks_equal_reference(make, reference, shape):
    layer = make()
    x, task = draw(shape)
    layer(x, task)
    expected = [reference(layer, x[i : i + 1], k)[0] for i, k in enumerate(task)]
    for given in (task, task[:, None], task.astype("int64"), task.astype("uint8")):
        y = to_numpy(layer(x, given))
        np.testing.assert_allclose(y, np.stack(expected), rtol=1e-5, atol=1e-5)
    assert layer.compute_output_shape(shape) == y.shape


def one_task_for_all_equals_reference(make, reference, shape):
    layer = make()
    x, _ = draw(shape)
    layer(x, 3)
    expected = reference(layer, x, 3)
    for given in (3, np.int64(3), np.array(3), ops.convert_to_tensor(3)):
        y = to_numpy(layer(x, given))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def compiled_equals_eager_and_knows_no_other_task(make, reference, shape):
    layer = make()
    x, task = draw(shape)
    eager = to_numpy(layer(x, task))
    model = functional(layer, shape)
    y = model.predict_on_batch({"image": x, "task": task})
    np.testing.assert_allclose(y, eager, rtol=1e-5, atol=1e-5)
    if BACKEND != "torch":  # Eager all through; the compiled form has its own test.
        mixed = task.copy()
        mixed[1] = NUM_TASKS
        y = model.predict_on_batch({"image": x, "task": mixed})
        check_answers(y, eager, 1e-5)
        unknown = np.arange(len(x)) % 10 < len(UNKNOWN)
        mixed = np.where(unknown, np.resize(UNKNOWN, len(x)), task).astype("int32")
        y = model.predict_on_batch({"image": x, "task": mixed})
        assert np.isnan(y[unknown]).all()
        np.testing.assert_allclose(y[~unknown], eager[~unknown], rtol=1e-5, atol=1e-5)
    # Anew, for TensorFlow relaxes mixed ranks to none: an example, as a column.
    model = functional(layer, shape)
    y = model.predict_on_batch({"image": x[:1], "task": task[:1, None]})
    np.testing.assert_allclose(y, eager[:1], rtol=1e-5, atol=1e-5)
    fixed = functional(make(), shape, batch=len(x))
    assert fixed.output_shape == layer.compute_output_shape(shape)


def check_answers(y, expected, tolerance):
    """Checks that only example 1, of an unknown task, has no answer."""
    assert np.isnan(y[1]).all()
    known = np.arange(len(y)) != 1
    np.testing.assert_allclose(
        y[known].astype("float32"), expected[known], rtol=tolerance, atol=tolerance
    )


def rebuilt_from_config(make, reference, shape):
    layer = make()
    x, task = draw(shape)
    model = functional(layer, shape)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    functional(again, shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(again(x, task)), to_numpy(layer(x, task)))
    cloned = keras.models.clone_model(model)
    assert [v.shape for v in cloned.weights] == [v.shape for v in model.weights]


def one_step_changes_trainable_weights_alone(make, reference, shape):
    layer = make()
    x, task = draw(shape)
    model = functional(layer, shape)
    before = {v.path: np.array(ops.convert_to_numpy(v)) for v in model.weights}
    trainable = {v.path for v in model.trainable_weights}
    model.compile(keras.optimizers.SGD(0.1), "mse")
    target = np.ones(layer.compute_output_shape(shape), "float32")
    if trainable:
        model.fit({"image": x, "task": task}, target, verbose=0, shuffle=False)
    for variable in model.weights:
        after = ops.convert_to_numpy(variable)
        changed = not np.array_equal(before[variable.path], after)
        assert changed == (variable.path in trainable), variable.path


def low_precision_is_close(make, reference, shape):
    x, task = draw(shape)
    exact = make()
    expected = to_numpy(exact(x, task))
    for policy in ("float16", "mixed_bfloat16"):
        layer = make(dtype=policy)
        layer(x, task)
        layer.set_weights(exact.get_weights())
        y = layer(x, task)
        dtype = keras.backend.standardize_dtype(y.dtype)
        assert dtype == policy.removeprefix("mixed_")
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(
            to_numpy(y), expected, rtol=tolerance, atol=tolerance
        )
    if BACKEND != "torch":
        layer = make(dtype="mixed_float16")
        model = functional(layer, shape)
        layer.set_weights(exact.get_weights())
        task[1] = NUM_TASKS
        y = model.predict_on_batch({"image": x, "task": task})
        check_answers(y, expected, TOLERANCE["bfloat16"])


def bad_task_is_refused(make, reference, shape):
    layer = make()
    x, task = draw(shape)
    layer(x, task)
    for wrong in UNKNOWN:
        mixed = np.where(np.arange(len(x)) == 1, wrong, task).astype("int32")
        for given in (wrong, mixed, ops.convert_to_tensor(mixed)):
            with pytest.raises(ValueError, match=rf"\[0, {NUM_TASKS}\).*task={wrong}"):
                layer(x, given)
    with pytest.raises(ValueError, match=f"task={2**32}"):
        layer(x, np.full(len(x), 2**32))
    for bad in (1.0, True, np.float32(1), task.astype("float32")):
        with pytest.raises(TypeError, match="`task` must"):
            layer(x, bad)
    with pytest.raises(ValueError, match="tasks have no names.*task='1'"):
        layer(x, "1")
    with pytest.raises(TypeError, match="integer dtype"):
        layer(x, task > 1)
    for call in (lambda: layer(x), lambda: layer(x, None)):
        with pytest.raises(ValueError, match="with a `task`, or inside"):
            call()
    with pytest.raises(TypeError, match='dtype="int32"'):
        layer(keras.Input(shape[1:]), keras.Input(()))
    for bad in (np.stack([task, task], axis=1), task[:, None, None]):
        with pytest.raises(ValueError, match="must have shape"):
            layer(x, bad)
    with pytest.raises(ValueError, match="one index for each example"):
        layer(x, task[:2])
    with pytest.raises(ValueError, match="one index for each example"):
        layer(x, task[:1])


CHECKS = (
    mixed_tasks_equal_reference,
    one_task_for_all_equals_reference,
    compiled_equals_eager_and_knows_no_other_task,
    rebuilt_from_config,
    one_step_changes_trainable_weights_alone,
    low_precision_is_close,
    bad_task_is_refused,
)
