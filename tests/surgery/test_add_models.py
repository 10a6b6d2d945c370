import keras
import numpy as np
import pytest
import small_models
from conftest import once
from small_models import answers
from small_models import call
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp
from keras_psp.consolidation import Gram
from keras_psp.optimizers import PerTask
from keras_psp.surgery import add_models
from keras_psp.surgery import remove_models


@pytest.mark.parametrize(
    "make, with_base",
    [
        once(make, bool(i % 2)) if make in small_models.SLOW else (make, bool(i % 2))
        for i, make in enumerate(small_models.MODELS)
    ],
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


@pytest.mark.parametrize("frozen", [once(False), once(True)])
@pytest.mark.parametrize("parts", [{}, {"rank": 2, "bits": 32}])
def test_a_compiled_model_trains_on_what_it_trained(parts, frozen):
    models = [draw_weights(small_models.sequential(), seed) for seed in range(4)]
    for model in models[:3]:
        model.get_layer("first").trainable = not frozen
    models[3].get_layer("first").trainable = frozen
    one = keras_psp.superpose(models[:2], base=models[2], **parts)
    one.compile(keras_psp.optimizers.PerTask("adam"), "mse")
    x, y = draw_inputs(models[0]), np.ones((6, small_models.CLASSES))
    trained = [weight.path for weight in one.trainable_weights]
    for task in ([0, 1, 1] * 2, [0, 1, 2] * 2):
        one.fit({**x, "task": np.array(task)}, y, verbose=0)
        if one.num_tasks == 2:
            add_models(one, models[3:])
    assert [weight.path for weight in one.trainable_weights] == trained


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.5),
        once(lambda: PerTask(keras.optimizers.ScheduleFreeAdamW(0.0))),
        lambda: Gram(keras.optimizers.SGD(1e-6), strength=1e9, every=1),
        once(
            lambda: keras.optimizers.MultiOptimizer(
                lambda variable: keras.optimizers.SGD(0.0, use_ema=True)
            )
        ),
    ],
)
def test_training_does_not_take_models_back(make):
    """Averages and anchors of the weights follow what is added to these."""
    models = [draw_weights(small_models.sequential(), seed) for seed in range(3)]
    one = keras_psp.superpose(models[:2])
    one.compile(make(), "mse")
    x, y = draw_inputs(models[0]), np.ones((6, small_models.CLASSES))
    one.fit({**x, "task": np.zeros(6, "int32")}, y, verbose=0)
    if hasattr(one.optimizer, "end_task"):
        one.optimizer.end_task(one, ({**x, "task": np.zeros(6, "int32")}, y))
    for change in (add_models, remove_models):
        change(one, models[2:])
        for k in range(one.num_tasks):
            expected = answers(one, x, k)
            one.fit({**x, "task": np.zeros(6, "int32")}, y, verbose=0)
            np.testing.assert_allclose(answers(one, x, k), expected, atol=1e-3)


def test_what_was_removed_is_not_removed_again():
    models = [draw_weights(small_models.sequential(), seed) for seed in range(4)]
    one = keras_psp.superpose(models, "powers").remove_task(2)
    one.compile("sgd", "mse")
    x, y = draw_inputs(models[0]), np.ones((6, small_models.CLASSES))
    one.fit({**x, "task": np.zeros(6, "int32")}, y, verbose=0)
    one.get_layer("first").trainable = False
    before = [np.array(w) for w in one.get_weights()]
    with pytest.raises(ValueError, match=r"tasks \[2\] were removed already"):
        remove_models(one, models[2:])
    with pytest.raises(ValueError, match="was built for other variables"):
        remove_models(one, models[3:])
    assert one.num_tasks == 4 and one.removed_tasks == (2,)
    for a, b in zip(one.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_converted_model_takes_models_in():
    base = draw_weights(small_models.sequential(), 9)
    model = draw_weights(small_models.sequential(), 1)
    one = add_models(keras_psp.convert(base, 2, "hadamard"), [model])
    inputs = draw_inputs(base)
    expected = call(model, inputs["x"])
    np.testing.assert_allclose(answers(one, inputs, 2), expected, atol=1e-5)


def test_bad_input():
    models = [draw_weights(small_models.sequential(), seed) for seed in range(4)]
    one = keras_psp.superpose(models[:3])
    before = [np.array(w) for w in one.get_weights()]
    other = keras.Sequential([keras.Input((5,), name="x"), keras.layers.Dense(2)])
    quantized = small_models.sequential()
    quantized.get_layer("last").quantize("int8")
    for bad, message in (
        ([], "`models` must be a list of Keras models"),
        (models[3], "`models` must be a list of Keras models"),
        ([other], "The first layer that differs is 'first'"),
        ([quantized], "layer that is quantized.*'last'"),
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


def fine_tuned(number):
    """A base and models that differ from it a little, with inputs of each task."""
    rng = np.random.default_rng(0)
    base = draw_weights(
        keras.Sequential(
            [
                keras.Input((32,), name="x"),
                keras.layers.Dense(32, activation="relu", name="first"),
                keras.layers.Dense(4, name="last"),
            ]
        )
    )
    models = []
    for _ in range(number):
        model = keras.models.clone_model(base)
        model.set_weights(
            [w + 0.3 * w.std() * rng.normal(size=w.shape) for w in base.get_weights()]
        )
        models.append(model)
    return base, models, rng


def errors(one, models, data):
    """Returns the mean error of each task of a superposed model."""
    return [
        np.abs(answers(one, {"x": x}, k) - call(model, x)).mean()
        for k, (model, x) in enumerate(zip(models, data, strict=True))
    ]


@pytest.mark.parametrize(
    "share",
    [
        once("turned"),
        "one distribution",
        once("turned, all data"),
    ],
)
def test_a_model_added_with_data_leaves_the_others(share, tmp_path):
    base, models, rng = fine_tuned(5)
    data = [rng.normal(size=(300, 32)).astype("float32") for _ in models]
    if share != "one distribution":  # Each task's inputs lie in 24 dimensions.
        for k, x in enumerate(data):
            x[:, (4 * k + np.arange(8)) % 32] = 0.0
    one = keras_psp.superpose(models[:4], "fast_rotation", base=base, data=data[:4])
    one.save(tmp_path / "one.keras")
    without = keras.models.load_model(tmp_path / "one.keras")
    assert without.fitted_to_data
    before = np.mean(errors(one, models[:4], data[:4]))
    given = data if share == "turned, all data" else data[4:]
    assert add_models(one, models[4:], data=given) is one
    *old, new = errors(one, models, data)
    with pytest.warns(
        UserWarning, match="fitted to data.*change by about [1-9][0-9] %"
    ):
        add_models(without, models[4:])
    *disturbed, _ = errors(without, models, data)
    assert np.mean(old) < 1.3 * before and new < 1.5 * before
    assert np.mean(disturbed) > 1.5 * np.mean(old)


def test_a_model_that_was_fitted_is_removed_without_moving_the_others():
    base, models, rng = fine_tuned(3)
    x = rng.normal(size=(100, 32)).astype("float32")
    one = keras_psp.superpose(models, "fast_rotation", base=base, data=[x] * 3)
    before = [answers(one, {"x": x}, k) for k in range(2)]
    remove_models(one, models[2:])
    for k, expected in enumerate(before):
        np.testing.assert_allclose(answers(one, {"x": x}, k), expected, atol=1e-6)


def test_data_make_a_superposed_model_without_a_base_better_too():
    _, models, rng = fine_tuned(4)
    x = rng.normal(size=(100, 32)).astype("float32")
    one, summed = (keras_psp.superpose(models[:3], "fast_rotation") for _ in range(2))
    add_models(one, models[3:], data=[x])
    add_models(summed, models[3:])
    assert errors(one, models, [x] * 4)[3] < errors(summed, models, [x] * 4)[3]
