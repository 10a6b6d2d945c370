import keras
import layer_checks
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from keras import ops
from layer_checks import NUM_TASKS
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp.layers import TaskEmbedding
from keras_psp.layers import TaskReversibleEmbedding
from keras_psp.models import TaskModel

SIZE = 6


def make(kind=TaskEmbedding, **kwargs):
    layer = kind(SIZE, 4, NUM_TASKS, **kwargs)
    layer.build()
    rng = np.random.default_rng(2)  # All tasks start alike.
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    return layer


def make_reversible(**kwargs):
    return make(TaskReversibleEmbedding, **kwargs)


def reference(layer, x, k):
    return to_numpy(layer.embeddings)[k][x.astype("int32")]  # -1 is the last.


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "make, shape",
    [(make, (10, 3)), once(make, (10,)), once(make_reversible, (10, 3))],
)
def test_layer(make, shape, check):
    check(make, reference, shape)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_soft_cap": 3.0},
        once({"tie_weights": False}),
        once({"reverse_dtype": "bfloat16"}),
    ],
)
def test_it_projects_back_as_the_keras_layer_does(options):
    x, task = draw((10, 3, 4))
    layer = make_reversible(**options)
    plain = keras.layers.ReversibleEmbedding(SIZE, 4, **options)
    plain.build()
    mixed = to_numpy(layer(x, task, reverse=True))
    for k in range(NUM_TASKS):
        plain.set_weights([to_numpy(weight)[k] for weight in layer.weights])
        y = plain(x, reverse=True)
        assert layer(x, k, reverse=True).dtype == y.dtype
        one = to_numpy(layer(x, k, reverse=True))
        np.testing.assert_allclose(one, to_numpy(y), rtol=1e-2, atol=1e-5)
        np.testing.assert_allclose(mixed[task == k], one[task == k], atol=1e-5)
    image = keras.Input((3, 4), name="image")
    given = {"image": image, "task": keras.Input((), dtype="int32", name="task")}
    model = TaskModel(given, layer(image, given["task"], reverse=True))
    y = model.predict({"image": x, "task": task}, verbose=0)
    # Of 16 bits, compiled code may round less.
    np.testing.assert_allclose(y.astype("float32"), mixed, rtol=2e-2, atol=1e-5)


def test_a_number_in_no_table_is_no_row_of_another_task():
    plain = keras.layers.Embedding(SIZE, 4)
    plain.build()
    layer = make()
    plain.set_weights([to_numpy(layer.embeddings)[1]])
    x = np.array([[SIZE], [2], [-SIZE - 1]], "int32")
    try:
        expected = to_numpy(plain(x))
    except Exception as error:  # Each backend has its own.
        with pytest.raises(type(error)):
            layer(x, [1, 1, 1])
        assert BACKEND != "jax"
    else:
        np.testing.assert_array_equal(to_numpy(layer(x, [1, 1, 1])), expected)


@pytest.mark.parametrize("make", [make, make_reversible])
def test_masks_are_those_of_the_keras_layer(make):
    words = np.array([[1, 0, 2], [0, 0, 3]], "int32")
    x = keras.Input((3,), dtype="int32", name="x")
    task = keras.Input((), dtype="int32", name="task")
    y = make(mask_zero=True)(x, task)
    total = keras.layers.GlobalAveragePooling1D()(y)
    model = TaskModel({"x": x, "task": task}, {"each": y, "mean": total})
    found = model.predict({"x": words, "task": np.array([4, 2])}, verbose=0)
    has = (words != 0)[..., None]
    mean = (found["each"] * has).sum(1) / has.sum(1)
    np.testing.assert_allclose(found["mean"], mean, atol=1e-6)


def test_a_step_leaves_the_tables_of_other_tasks_alone():
    layer = make()
    before = to_numpy(layer.embeddings).copy()
    model = functional(layer, (8, 3))
    model.compile(keras.optimizers.SGD(1.0), "mse")
    words, task = np.full((8, 3), 2.0, "float32"), np.full(8, 3)
    model.fit({"image": words, "task": task}, np.ones((8, 3, 4)), verbose=0)
    moved = np.abs(to_numpy(layer.embeddings) - before).max(-1)
    assert moved[3, 2] > 0
    moved[3, 2] = 0
    assert not moved.any()


@pytest.mark.once
def test_tasks_are_added_and_removed():
    layer, (x, task) = make(), draw((10, 3))
    before = to_numpy(layer(x, task))
    layer.add_tasks(2)
    np.testing.assert_array_equal(to_numpy(layer(x, task)), before)
    rows = to_numpy(layer.embeddings)[NUM_TASKS:]
    np.testing.assert_array_equal(rows[0], rows[1])
    layer.remove_tasks(n=2)
    np.testing.assert_array_equal(to_numpy(layer(x, task)), before)


@pytest.mark.once
def test_weights_that_tasks_begin_with():
    table = np.random.default_rng(0).normal(size=(SIZE, 4)).astype("float32")
    for weights in (table, [table], np.stack([table] * NUM_TASKS)):
        layer = TaskEmbedding(SIZE, 4, NUM_TASKS, weights=weights)
        np.testing.assert_array_equal(to_numpy(layer.embeddings)[3], table)
        assert "weights" not in layer.get_config()


@pytest.mark.once
def test_bad_input():
    with pytest.raises(ValueError, match="`num_tasks` must be a positive integer"):
        TaskEmbedding(3, 4, 0)
    for kind in (TaskEmbedding, TaskReversibleEmbedding):
        with pytest.raises(ValueError, match="has no LoRA"):
            make(kind).enable_lora(2)
        with pytest.raises(ValueError, match="has no LoRA"):
            kind(3, 4, 2, lora_rank=2)
        with pytest.raises(NotImplementedError, match="cannot be quantized"):
            make(kind).quantize("int8")
    model = functional(make(), (8, 3))
    with pytest.raises(ValueError, match="cannot be quantized to 'int8'"):
        model.quantize("int8")
    with pytest.raises(TypeError, match="no contexts that could be mixed"):
        make()(ops.ones((2, 3), "int32"), np.ones((2, NUM_TASKS), "float32"))
