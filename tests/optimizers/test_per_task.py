import warnings

import keras
import numpy as np
import pytest
from conftest import once
from conftest import some_once
from keras import ops
from layer_checks import to_numpy

import keras_psp
from keras_psp.consolidation import EWC
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.consolidation.end_task import find_consolidation
from keras_psp.optimizers import PerTask
from keras_psp.optimizers._advise import advise

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 8)).astype("float32")
Y = (np.arange(12) % 4).astype("int32")
L2 = keras.regularizers.L2(0.01)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.01),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "adamw": lambda: keras.optimizers.AdamW(0.01, use_ema=True),
    "overwritten": lambda: keras.optimizers.SGD(
        0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=2
    ),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "schedule_free": lambda: keras.optimizers.ScheduleFreeAdamW(0.01),
    "scaled": lambda: keras.optimizers.Adam(0.01, loss_scale_factor=64.0),
}
AROUND = {
    "per_task": lambda each: PerTask(each),
    "scale_around": lambda each: keras.optimizers.LossScaleOptimizer(PerTask(each)),
    "scale_inside": lambda each: PerTask(keras.optimizers.LossScaleOptimizer(each)),
    "ewc_around": lambda each: EWC(PerTask(each), strength=50.0),
    "ewc_inside": lambda each: PerTask(EWC(each, strength=50.0)),
    "si_around": lambda each: SynapticIntelligence(PerTask(each)),
    "gram_around": lambda each: Gram(PerTask(each), every=2),
    "gram_inside": lambda each: PerTask(Gram(each, every=2)),
}


def build(optimizer, regularizer=None, num_tasks=3):
    keras.utils.set_random_seed(0)
    image = keras.Input((8,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    hidden = keras.layers.Dense(5, activation="tanh")(image)
    layer = keras_psp.layers.TaskDense(4, num_tasks, kernel_regularizer=regularizer)
    model = keras_psp.models.TaskModel(
        {"image": image, "task": task}, layer(hidden, task)
    )
    model.compile(optimizer, CROSSENTROPY)
    return model


def fit(model, task, x=X, y=Y, **kwargs):
    given = {"image": x, "task": np.broadcast_to(np.int32(task), (len(x),))}
    model.fit(given, y, shuffle=False, verbose=0, **kwargs)


def rows_of(model, task):
    """The head's weights of a task, and what all optimizers keep for them."""
    return [
        to_numpy(v)[task]
        for v in (*model.layers[-1].weights, *model.optimizer.variables)
        if tuple(v.shape) in {(3, 5, 4), (3, 4), (3, 5), (3,)} and "moved" not in v.path
    ]


def check_stands_still(optimizer, regularizer=None):
    model = build(optimizer, regularizer)
    fit(model, 0, batch_size=4, epochs=2)
    consolidation = find_consolidation(model.optimizer)
    if consolidation is not None:
        consolidation.end_task(model, ({"image": X, "task": np.zeros(12, "int32")}, Y))
        fit(model, 0, batch_size=4, epochs=2)  # Away from the anchor.
    before, shared = rows_of(model, 0), to_numpy(model.layers[1].kernel)
    other = rows_of(model, 1)
    fit(model, 1, batch_size=4, epochs=3)
    for old, new in zip(before, rows_of(model, 0), strict=True):
        np.testing.assert_array_equal(new, old)
    assert not np.array_equal(to_numpy(model.layers[1].kernel), shared)
    assert not np.array_equal(rows_of(model, 1)[0], other[0])
    return model


# The bias has no regularizer.
@pytest.mark.parametrize(
    "name",
    some_once(OPTIMIZERS, every=("adam", "overwritten", "accumulating", "adafactor")),
)
def test_a_task_stands_still_while_others_train(name):
    check_stands_still(PerTask(OPTIMIZERS[name]()), L2)


@pytest.mark.parametrize(
    "name", some_once(AROUND, every=("scale_around", "gram_around"))
)
def test_inside_and_around_other_optimizers(name):
    check_stands_still(AROUND[name](keras.optimizers.Adam(0.01)), L2)


@pytest.mark.parametrize(
    "name",
    ["adam", *map(once, ("adamw", "accumulating", "lamb", "schedule_free"))],
)
def test_a_task_is_trained_as_if_there_were_no_other(name):
    regularizer = None if name == "lamb" else L2  # Which sees the norm of all rows.

    def head(model):
        model.layers[1].trainable = False  # What tasks share.
        model.compile(model.optimizer, CROSSENTROPY)
        return model

    together = head(build(PerTask(OPTIMIZERS[name]()), regularizer))
    fit(together, 0, batch_size=4, epochs=4)
    if name == "lamb":
        return  # It stands still, and its trust ratio is that of all rows.
    fit(together, 1, batch_size=2)
    alone = head(build(OPTIMIZERS[name](), regularizer))
    fit(alone, 1, batch_size=2)
    for a, b in zip(together.layers[-1].weights, alone.layers[-1].weights, strict=True):
        np.testing.assert_allclose(to_numpy(a)[1], to_numpy(b)[1], rtol=1e-5, atol=1e-7)
    # In a batch of several tasks too.
    mixed = head(build(PerTask(OPTIMIZERS[name]()), None))
    fit(mixed, np.arange(12) % 3, batch_size=6, epochs=2)
    parts = [to_numpy(v) for v in mixed.optimizer.steps if v is not None]
    assert all((part == parts[0]).all() for part in parts) and parts[0].min() > 0


@pytest.mark.once
def test_sums_over_columns_belong_to_no_task():
    layer = keras_psp.layers.PSPDense(3, num_tasks=3, bias_per_task=True)
    layer.build((None, 4))
    variables = layer.trainable_variables
    optimizer = PerTask(keras.optimizers.Adafactor(0.01))
    optimizer.build(variables)
    bias = next(i for i, v in enumerate(variables) if tuple(v.shape) == (3, 3))
    grads = [ops.ones(v.shape) for v in variables]
    grads[bias] = ops.convert_to_tensor(np.float32([[1, 1, 1], [0, 0, 0], [0, 0, 0]]))
    optimizer.apply(grads, variables)
    # A sum for each of as many columns as there are tasks, of which one has trained.
    columns = to_numpy(optimizer.optimizer._c[bias])
    assert columns.min() == columns.max() > 0


def test_shared_weights_are_trained_as_without_it():
    models = [build(optimizer) for optimizer in ("adam", PerTask("adam"))]
    for model in models:
        fit(model, np.arange(12) % 3, epochs=3)
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("around", ["ewc_around", "scale_around", "scale_inside"])
def test_averages_are_swapped_as_without_it(around):
    def train(wrap):
        model = build(wrap(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)))
        x = {"image": X, "task": np.arange(12) % 3}
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        options = {"validation_data": (x, Y), "callbacks": [swap], "epochs": 2}
        history = model.fit(x, Y, batch_size=6, shuffle=False, verbose=0, **options)
        return history.history["val_loss"], model.get_weights()

    losses, weights = train(AROUND[around])
    wanted, others = train(lambda each: each)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_files_keep_it(tmp_path):
    model = build(PerTask(OPTIMIZERS["adamw"]()), L2)
    fit(model, 0, batch_size=4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, again):
        fit(each, 1, batch_size=4)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), atol=1e-6)


def test_a_model_that_needs_it_says_so_once():
    def told(optimizer, regularizer=None, model=None):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = model or build("sgd", regularizer)
            caught.clear()
            advise(model, optimizer)
            advise(model, optimizer)
        return [str(each.message) for each in caught]

    for optimizer, reason in (
        (keras.optimizers.SGD(0.1, momentum=0.9), "momentum"),
        (keras.optimizers.SGD(0.1, weight_decay=0.1), "weight decay"),
        (keras.optimizers.Adam(), "moments"),
        (EWC("rmsprop"), "moments"),
        (keras.optimizers.SGD(use_ema=True), "average"),
    ):
        (message,) = told(optimizer)
        assert reason in message and "keras_psp.optimizers.PerTask" in message
    (message,) = told(keras.optimizers.SGD(), L2)
    assert "regularizer" in message
    assert not told(keras.optimizers.SGD())
    assert not told(PerTask("adam"), L2)
    assert not told(EWC(PerTask("adam")), L2)
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert not told(keras.optimizers.Adam(), model=plain)


def test_bad_input():
    with pytest.raises(ValueError, match="nadm"):
        PerTask("nadm")


def test_several_optimizers_stand_around_it():
    inside = keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.Adam())
    with pytest.raises(ValueError, match="stands inside a `MultiOptimizer`"):
        PerTask(inside)
