import keras
import numpy as np
import pytest
import small_models
from small_models import answers
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp
from keras_psp.surgery import add_models
from keras_psp.surgery import remove_models


@pytest.mark.parametrize(
    "make, with_base",
    [(make, bool(i % 2)) for i, make in enumerate(small_models.MODELS)],
)
def test_models_come_later_and_go_again(make, with_base):
    base = draw_weights(make(), 9) if with_base else None
    models = [draw_weights(make(), seed) for seed in range(4)]
    inputs = draw_inputs(models[0])
    one = keras_psp.superpose(models[:2], base=base)
    first = [answers(one, inputs, k) for k in range(2)]
    assert add_models(one, models[2:]) is one
    at_once = keras_psp.superpose(models, base=base)
    for k in range(4):
        expected = answers(at_once, inputs, k)
        np.testing.assert_allclose(answers(one, inputs, k), expected, atol=1e-5)
    assert remove_models(one, models[2:]) is one and one.num_tasks == 2
    for k, expected in enumerate(first):
        np.testing.assert_allclose(answers(one, inputs, k), expected, atol=1e-5)


def test_what_is_each_tasks_own_stays_bit_for_bit():
    models = [draw_weights(small_models.convolutional(), seed) for seed in range(3)]
    one = keras_psp.superpose(models[:2])
    own = [w for w in one.weights if not w.path.endswith("/kernel")]
    before = {w.path: np.array(keras.ops.convert_to_numpy(w)) for w in own}
    remove_models(add_models(one, models[2:]), models[2:])
    after = {w.path: keras.ops.convert_to_numpy(w) for w in one.weights}
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_a_converted_model_takes_models_in():
    base = draw_weights(small_models.sequential(), 9)
    model = draw_weights(small_models.sequential(), 1)
    one = add_models(keras_psp.convert(base, 2, "hadamard"), [model])
    inputs = draw_inputs(base)
    expected = model.predict(inputs["x"], verbose=0)
    np.testing.assert_allclose(answers(one, inputs, 2), expected, atol=1e-5)


def test_bad_input():
    models = [draw_weights(small_models.sequential(), seed) for seed in range(4)]
    one = keras_psp.superpose(models[:3])
    before = [np.array(w) for w in one.get_weights()]
    other = keras.Sequential([keras.Input((5,), name="x"), keras.layers.Dense(2)])
    with_lora = small_models.sequential()
    with_lora.get_layer("last").enable_lora(2)
    for bad, message in (
        ([], "`models` must be a list of Keras models"),
        (models[3], "`models` must be a list of Keras models"),
        ([other], "The first layer that differs is 'first'"),
        ([with_lora], "quantized or has a LoRA.*'last'"),
    ):
        for change in (add_models, remove_models):
            with pytest.raises(ValueError, match=message):
                change(one, bad)
    with pytest.raises(ValueError, match="must be the last tasks.*in 'first'"):
        remove_models(one, models[:1])
    with pytest.raises(ValueError, match="leave at least one of 3 tasks"):
        remove_models(one, models[:3])
    with pytest.raises(TypeError, match="must be a Keras model"):
        add_models(one, ["first"])
    with pytest.raises(TypeError, match="must be a `TaskModel`"):
        add_models(models[0], models)
    assert one.num_tasks == 3
    for a, b in zip(one.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tasks_that_share_a_bias_take_none_with_another():
    x = keras.Input((4,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    y = keras_psp.layers.PSPDense(2, num_tasks=2)(x, task)
    one = keras_psp.models.TaskModel({"x": x, "task": task}, y)
    same = keras_psp.extract(one, 0)
    assert add_models(one, [same]).num_tasks == 3
    with pytest.raises(ValueError, match="share the weights of"):
        add_models(one, [draw_weights(keras_psp.extract(one, 0))])
    pairs = keras_psp.models.mlp(
        (4,), 2, 2, units=4, depth=1, context="complex", complex_valued=True
    )
    with pytest.raises(ValueError, match="kernel of complex numbers"):
        add_models(pairs, [keras_psp.extract(pairs, 0)])
