import keras
import layer_checks
import numpy as np
import pytest
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp.contexts import Binary
from keras_psp.contexts import Complex
from keras_psp.contexts import Householder
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskLayerNormalization

SHAPES = ((10, 6), (10, 3, 6), (10, 2, 3, 6))


def make(**kwargs):
    kwargs = {"activation": "tanh", "bias_initializer": "normal", **kwargs}
    layer = TaskDense(4, num_tasks=NUM_TASKS, **kwargs)
    layer.build((None, 6))
    rng = np.random.default_rng(2)  # All tasks start alike.
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return layer


def make_without_bias(**kwargs):
    return make(use_bias=False, **kwargs)


def reference(layer, x, k):
    y = x @ to_numpy(layer.kernel)[k]
    return np.tanh(y + to_numpy(layer.bias)[k] if layer.use_bias else y)


CASES = [
    once(make, SHAPES[0]),
    (make, SHAPES[1]),
    once(make, SHAPES[2]),
    (make_without_bias, SHAPES[0]),
]


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make, shape", CASES)
def test_layer(make, shape, check):
    check(make, reference, shape)


def test_training_one_task_leaves_the_others_as_they_are():
    x, _ = draw((10, 6))
    task = np.array([1, 3] * 5, "int32")
    layer = make()
    model = functional(layer, x.shape)
    before = [np.array(w) for w in layer.get_weights()]
    model.compile("rmsprop", "mse")
    model.fit({"image": x, "task": task}, np.ones((10, 4)), epochs=2, verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        changed = [not np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
        assert changed == [False, True, False, True, False]


def test_initial_weights_are_as_a_plain_layers_and_alike():
    layer = TaskDense(64, num_tasks=3)
    layer.build((None, 32))
    kernel = to_numpy(layer.kernel)
    limit = (6 / (32 + 64)) ** 0.5  # Glorot's, of one task's kernel.
    assert limit * 0.98 < np.abs(kernel).max() <= limit
    assert (kernel == kernel[0]).all()


def test_regularizers_and_constraints_see_one_task_at_a_time():
    x, task = draw((10, 6))
    layer = make(
        kernel_regularizer=keras.regularizers.OrthogonalRegularizer(),
        kernel_constraint=keras.constraints.MaxNorm(0.1),
    )
    plain = [
        keras.regularizers.OrthogonalRegularizer()(w) for w in to_numpy(layer.kernel)
    ]
    np.testing.assert_allclose(
        to_numpy(layer.losses[0]), sum(map(float, map(to_numpy, plain))), rtol=1e-5
    )
    model = functional(layer, x.shape)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit({"image": x, "task": task}, np.ones((10, 4)), verbose=0)
    norms = np.linalg.norm(to_numpy(layer.kernel), axis=1)
    np.testing.assert_allclose(norms, 0.1, rtol=1e-5)


def test_it_is_a_dense_with_its_arguments_and_no_others():
    layer = make()
    assert isinstance(layer, keras.layers.Dense)
    assert set(layer.get_config()) == set(keras.layers.Dense(4).get_config()) | {
        "num_tasks"
    }


def test_files_keep_the_answers_and_grow(tmp_path):
    x, task = draw((10, 6))
    inputs = {"image": x, "task": task}
    model = functional(make(name="dense"), x.shape)
    expected = model.predict(inputs, verbose=0)
    assert model.add_tasks(2) is model and model.num_tasks == NUM_TASKS + 2
    assert [v.path for v in model.weights] == ["dense/kernel", "dense/bias"]
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)
    model.predict({"image": x, "task": task + 2}, verbose=0)
    model.compile("adam", "mse")
    model.fit({"image": x, "task": task + 2}, expected, verbose=0)
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


def test_what_it_cannot_do_it_says():
    with pytest.raises(ValueError, match="no LoRA"):
        make(lora_rank=2)
    with pytest.raises(ValueError, match="no LoRA"):
        make().enable_lora(2)
    with pytest.raises(NotImplementedError, match="cannot be quantized"):
        make().quantize("int8")
    with pytest.raises(TypeError, match="no contexts that could be mixed"):
        make()(np.ones((2, 6), "float32"), np.ones((2, NUM_TASKS), "float32"))
    with pytest.raises(ValueError, match="num_tasks=0"):
        TaskDense(2, num_tasks=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TaskDense(4, NUM_TASKS),
        lambda: PSPDense(4, NUM_TASKS, bias_per_task=True),
        lambda: TaskLayerNormalization(NUM_TASKS),
        lambda: PSPDense(4, context=Binary(NUM_TASKS, learnable=True)),
        lambda: PSPDense(4, context=Householder(NUM_TASKS, learnable=True)),
        lambda: PSPDense(4, context=Complex(NUM_TASKS, learnable=True)),
    ],
)
def test_adam_sees_one_gradient_a_row(make):
    """TensorFlow's sparse gradients have a slice for each example of a task."""
    x, _ = draw((12, 4))
    task = (np.arange(12) % 2).astype("int32")
    layer = make()
    model = functional(layer, x.shape)
    model.compile(keras.optimizers.Adam(0.01, epsilon=1e-12), "mse")
    before = [to_numpy(w) for w in layer.trainable_variables]
    y = np.random.default_rng(1).normal(size=(12, 4)).astype("float32")
    model.fit({"image": x, "task": task}, y, batch_size=12, verbose=0)
    rows = 0
    for weight, old in zip(layer.trainable_variables, before, strict=True):
        if len(weight.shape) > 1 and weight.shape[0] == NUM_TASKS:
            moved = np.abs(to_numpy(weight) - old)
            np.testing.assert_allclose(moved[:2], 0.01, rtol=1e-3)
            assert not moved[2:].any()
            rows += 1
    assert rows
