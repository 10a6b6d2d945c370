import keras
import numpy as np
import pytest
from conftest import once
from keras import layers
from keras import ops

import keras_psp
from keras_psp.evaluation import StopEachTask
from keras_psp.evaluation import task_losses
from keras_psp.models import TaskBatches
from keras_psp.optimizers import PerTask

K = 3


def encoder():
    return keras.Sequential(
        [
            keras.Input((6,), name="x"),
            layers.Dense(5, "relu"),
            layers.Dense(6),
        ]
    )


def with_norms():
    x = keras.Input((6,), name="x")
    y = layers.BatchNormalization()(layers.Dense(5, "relu")(x))
    y = layers.LayerNormalization()(layers.Dense(6)(y))
    return keras.Model(x, y)


def convolutions():
    x = keras.Input((6, 2), name="x")
    y = layers.Conv1D(3, 2, activation="relu")(x)
    y = layers.DepthwiseConv1D(2)(y)
    return keras.Model(x, layers.Dense(6)(layers.Flatten()(y)))


def recurrent():
    x = keras.Input((4, 2), name="x")
    return keras.Model(x, layers.Dense(6)(layers.GRU(3)(x)))


def attention(**kwargs):
    x = keras.Input((4, 2), name="x")
    y = layers.MultiHeadAttention(2, 3, **kwargs)(x, x)
    return keras.Model(x, layers.Dense(6)(layers.Flatten()(y)))


def constrained():
    # Its projections have no counterpart: the attention is a block around them.
    return attention(kernel_constraint="non_neg")


BUILDERS = [encoder, with_norms, convolutions, recurrent, attention, constrained]


def examples(model, numbers, seed=0):
    rng = np.random.default_rng(seed)
    shape = next(x for x in model.inputs if x.name == "x").shape[1:]
    return [
        (
            rng.normal(size=(n, *shape)).astype("float32"),
            rng.normal(size=(n, 6)).astype("float32"),
        )
        for n in numbers
    ]


def shaken(build, number=K):
    """Models with other weights everywhere, and statistics that are possible."""
    models = [build() for _ in range(number)]
    rng = np.random.default_rng(3)
    for model in models:
        model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return models


@pytest.mark.parametrize("build", BUILDERS, ids=lambda f: f.__name__)
def test_each_task_answers_as_its_own_model(build):
    models = shaken(build)
    many = keras_psp.stack(models)
    (x, _), *_ = examples(models[0], [9])
    task = np.array([0, 1, 2, 2, 1, 0, 0, 2, 1])
    answers = many.predict({"x": x, "task": task}, verbose=0)
    for k, model in enumerate(models):
        own = task == k
        expected = model.predict(x[own], verbose=0)
        np.testing.assert_allclose(answers[own], expected, atol=1e-5)
        extracted = keras_psp.extract(many, k).predict(x[own], verbose=0)
        np.testing.assert_allclose(extracted, expected, atol=1e-5)


@pytest.mark.parametrize("build", [once(attention), once(constrained)])
def test_a_copied_attention_is_kept_in_files_and_goes(build, tmp_path):
    models = shaken(build)
    keras_psp.stack(models).save(tmp_path / "many.keras")
    many = keras.saving.load_model(tmp_path / "many.keras")
    keras_psp.surgery.add_models(many.remove_task(1), models[:1])
    (x, _), *_ = examples(models[0], [4])
    for k, model in enumerate((models[0], models[0], models[2])):
        found = many.predict({"x": x, "task": np.full(4, k)}, verbose=0)
        np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)


def test_fresh_weights_differ_and_are_spread_as_the_initializers_say():
    dense = layers.Dense(50, "relu", bias_initializer=keras.initializers.RandomNormal())
    plain = keras.Sequential([keras.Input((40,), name="x"), dense])
    many = keras_psp.stack(plain, num_tasks=20)
    kernel, bias = (ops.convert_to_numpy(w) for w in many.weights)
    limit = (6 / 90) ** 0.5  # Of GlorotUniform.
    spread = kernel.std(axis=(1, 2)) / (limit / 3**0.5)
    assert abs(kernel).max() <= limit and np.all(abs(spread - 1) < 0.1)
    assert len(np.unique(kernel)) > 0.99 * kernel.size
    assert len(np.unique(bias)) > 0.99 * bias.size
    many.add_tasks(2)
    later = ops.convert_to_numpy(many.weights[0])
    np.testing.assert_array_equal(later[:20], kernel)
    assert len(np.unique(later)) > 0.99 * later.size
    many.remove_task(3)
    many.add_tasks(1)
    again = ops.convert_to_numpy(many.weights[0])
    assert len(np.unique(np.stack([*later, again[3]]))) > 0.99 * 23 * 2000


def test_fresh_weights_of_other_initializers_and_of_copies():
    plain = keras.Sequential(
        [
            keras.Input((4, 2), name="x"),
            layers.Conv1D(3, 2, bias_initializer="ones"),
            layers.Dense(3, kernel_initializer=keras.initializers.Orthogonal(seed=5)),
        ]
    )
    many = keras_psp.stack(plain, num_tasks=3)
    for weight in many.weights:
        rows = ops.convert_to_numpy(weight)
        alike = len(weight.shape) == 2  # The biases.
        assert np.array_equal(rows[0], rows[1]) == alike, weight.path
        assert np.array_equal(rows[1], rows[2]) == alike, weight.path


def train_alone(model, batches, epochs, task):
    for _ in range(epochs):
        for i in range(batches.num_batches):
            x, y, *weight = batches[i]
            own = x["task"] == task
            if weight:
                own &= weight[0] > 0
            if own.any():
                model.train_on_batch(x["x"][own], y[own])
        batches.next_epoch()


@pytest.mark.parametrize("build", [with_norms, recurrent], ids=lambda f: f.__name__)
def test_training_together_is_training_alone(build):
    models = shaken(build)
    many = keras_psp.stack(models)
    data = examples(models[0], [8, 3, 6])
    make = {"batch_size": 4, "seed": 1}
    # With this epsilon, rounding errors of gradients near 0 are no steps.
    adam = {"learning_rate": 0.01, "epsilon": 1e-3}
    many.compile(PerTask(keras.optimizers.Adam(**adam)), "mse")
    many.fit(TaskBatches(data, many, **make), epochs=2, verbose=0)
    alone = build()
    alone.compile(keras.optimizers.Adam(**adam), "mse")
    for k in (0, 1):
        alone.set_weights(models[k].get_weights())
        iterations, _, *moments = alone.optimizer.variables
        for variable in (iterations, *moments):
            variable.assign(np.zeros(variable.shape))
        train_alone(alone, TaskBatches(data, many, **make), 2, k)
        found = keras_psp.extract(many, k).get_weights()
        for weight, own in zip(alone.get_weights(), found, strict=True):
            np.testing.assert_allclose(own, weight, atol=2e-5)


def test_any_batch_trains_each_task_by_its_own_mean():
    models = shaken(encoder)
    many = keras_psp.stack(models)
    ((x, y),) = examples(models[0], [7])
    task, weight = np.array([2, 0, 2, 0, 0, 2, 0]), np.array([1, 2, 0, 1, 1, 3, 1.0])
    many.compile("sgd", "mse")
    loss = many.train_on_batch({"x": x, "task": task}, y, sample_weight=weight)
    losses = 0.0
    for k, model in enumerate(models):
        own = (task == k) & (weight > 0)
        if own.any():
            model.compile("sgd", "mse", run_eagerly=True)
            losses += model.train_on_batch(x[own], y[own], sample_weight=weight[own])
        found = keras_psp.extract(many, k).get_weights()
        for each, rows in zip(model.get_weights(), found, strict=True):
            np.testing.assert_allclose(rows, each, atol=1e-5)
    np.testing.assert_allclose(loss, losses, rtol=1e-5)


def tagger():
    x = keras.Input((4,), dtype="int32", name="x")
    y = layers.Embedding(5, 3, mask_zero=True)(x)
    return keras.Model(x, layers.Dense(6)(y))


def test_places_that_are_masked_or_ignored_do_not_count():
    models = shaken(tagger)
    many = keras_psp.stack(models)
    rng = np.random.default_rng(0)
    data = [(rng.integers(1, 5, (n, 4)), rng.integers(0, 6, (n, 4))) for n in (4, 2, 4)]
    data[0][0][:, 2:] = 0  # Masked.
    data[2][1][:3, 1:] = -1  # Ignored.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    many.compile(PerTask("sgd"), loss)
    many.fit(TaskBatches(data, many, shuffle=False), verbose=0)
    losses = task_losses(many, TaskBatches(data, many))
    for k, (model, (x, y)) in enumerate(zip(models, data, strict=True)):
        model.compile("sgd", loss, run_eagerly=True)
        model.train_on_batch(x, y)
        found = keras_psp.extract(many, k).get_weights()
        for each, rows in zip(model.get_weights(), found, strict=True):
            np.testing.assert_allclose(rows, each, atol=1e-5)
    # Of labels alone: `predict()` gives no mask.
    np.testing.assert_allclose(losses[2], models[2].evaluate(*data[2], verbose=0), 1e-5)


def test_padding_is_no_part_of_a_loss():
    models = shaken(encoder)
    many = keras_psp.stack(models)
    many.compile(PerTask("sgd"), "mse")
    data = examples(models[0], [7, 3, 5])
    batches = TaskBatches(data, many, batch_size=4)
    wanted = np.average(task_losses(many, batches, "mse"), weights=[7, 3, 5])
    np.testing.assert_allclose(many.evaluate(batches, verbose=0), wanted, rtol=1e-5)
    (x, y), *_ = data
    mixed = {"x": x, "task": np.arange(7) % 3}
    alone = many.evaluate(mixed, y, sample_weight=np.ones(7), verbose=0)
    np.testing.assert_allclose(alone, many.evaluate(mixed, y, verbose=0), rtol=1e-6)


@pytest.mark.once
def test_losses_of_the_users_own_and_of_layers():
    def whole(y, y_pred):
        return ops.mean(ops.square(y - y_pred), axis=(1, 2))

    models = shaken(
        lambda: keras.Sequential([keras.Input((3, 2), name="x"), layers.Dense(6)])
    )
    many = keras_psp.stack(models)
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    y = np.ones((4, 3, 6))
    for loss in (whole, "mse"):  # One number for an example, and one for each place.
        many.compile("sgd", loss)
        models[1].compile("sgd", loss)
        many.fit({"x": x, "task": np.full(4, 1)}, y, verbose=0)
        models[1].fit(x, y, verbose=0)
        found = keras_psp.extract(many, 1).get_weights()
        for each, rows in zip(models[1].get_weights(), found, strict=True):
            np.testing.assert_allclose(rows, each, atol=1e-5)
    adds = layers.ActivityRegularization(0.1)
    many = keras_psp.stack(
        keras.Sequential([keras.Input((2,), name="x"), layers.Dense(6), adds]), 2
    )
    many.compile("sgd", "mse")
    with pytest.raises(ValueError, match="losses that layers add"):
        many.fit({"x": x[:, 0], "task": np.zeros(4, int)}, y[:, 0])
    x = keras.Input((6,), name="x")
    many = keras_psp.stack(keras.Model(x, [layers.Dense(6)(x), layers.Dense(6)(x)]), 2)
    every = [(x, [y, y]) for x, y in examples(encoder(), [4, 4])]
    with pytest.raises(ValueError, match="one output. Received: .*with 2"):
        task_losses(many, TaskBatches(every, many), "mse")


def test_batches_may_come_in_blocks_or_not_in_turn():
    models = shaken(encoder)
    many = keras_psp.stack(models)
    data = examples(models[0], [8, 8, 8])
    batches = TaskBatches(data, many, batch_size=4, shuffle=False)
    many.compile(PerTask("sgd"), "mse")
    many.fit(batches, validation_data=batches, verbose=0)
    expected = many.predict(batches, batch_size=None, verbose=0)
    x, y = batches[0]
    mixed = {name: value[::-1] for name, value in x.items()}
    found = many.predict(mixed, batch_size=12, verbose=0)
    np.testing.assert_allclose(found[::-1], expected[:12], atol=1e-5)
    in_blocks = many.evaluate(batches, verbose=0)
    every = {"x": np.concatenate([x for x, _ in data]), "task": np.repeat(range(3), 8)}
    labels = np.concatenate([y for _, y in data])
    np.testing.assert_allclose(
        many.evaluate(every, labels, verbose=0), in_blocks, rtol=1e-5
    )
    many.fit(mixed, y[::-1], verbose=0)
    assert all(np.isfinite(weight).all() for weight in many.get_weights())


def test_task_losses_are_those_of_each_task():
    models = shaken(encoder)
    many = keras_psp.stack(models)
    data = examples(models[0], [7, 3, 5])
    found = task_losses(many, TaskBatches(data, many, batch_size=4), "mse")
    for model, (x, y), loss in zip(models, data, found, strict=True):
        expected = np.mean((model.predict(x, verbose=0) - y) ** 2)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_each_task_has_its_rate():
    models = shaken(encoder)
    many = keras_psp.stack(models)
    data = examples(models[0], [4, 4, 4])
    batches = TaskBatches(data, many, shuffle=False)
    many.compile(PerTask("adam", rates=[1.0, 0.0, 5.0]), "mse")
    many.fit(batches, epochs=2, verbose=0)
    for k, rate in enumerate([0.001, 0.0, 0.005]):
        models[k].compile(keras.optimizers.Adam(rate), "mse", run_eagerly=True)
        models[k].fit(*data[k], epochs=2, shuffle=False, verbose=0)
        found = keras_psp.extract(many, k).get_weights()
        for each, rows in zip(models[k].get_weights(), found, strict=True):
            np.testing.assert_allclose(rows, each, atol=1e-5)
    many.add_tasks(1)
    np.testing.assert_array_equal(many.optimizer.task_rates, [1, 0, 5, 1])
    many.remove_tasks(n=2)
    config = many.optimizer.get_config()
    assert config["rates"] == [1, 0]


def test_a_task_that_is_done_stands_still():
    many = keras_psp.stack(shaken(encoder))
    data = examples(many, [8, 8, 8])
    # The labels of the second task are its own answers: it can only become worse.
    x = data[1][0]
    labels = many.predict({"x": x, "task": np.full(8, 1)}, verbose=0)
    data[1] = x, labels
    before = keras_psp.extract(many, 1).get_weights()
    noisy = [data[0], (x, labels + 1), data[2]]
    batches, validation = TaskBatches(noisy, many), TaskBatches(data, many)
    stop = StopEachTask(validation, patience=2)
    many.compile(PerTask(keras.optimizers.Adam(0.01), rates=1.0), "mse")
    many.fit(batches, epochs=6, callbacks=[stop], verbose=0)
    assert stop.stopped.tolist() == [-1, 2, -1]
    np.testing.assert_array_equal(many.optimizer.task_rates, [1, 0, 1])
    losses = np.array(stop.losses)
    np.testing.assert_allclose(losses[3:, 1], losses[0, 1], rtol=1e-5)
    assert np.all(np.diff(losses[:, 0]) < 0)
    after = keras_psp.extract(many, 1).get_weights()
    assert max(abs(a - b).max() for a, b in zip(before, after, strict=True)) < 0.05


@pytest.mark.once
@pytest.mark.parametrize("best", [True, False])
def test_statistics_of_a_task_that_is_done_stand_still(best):
    many = keras_psp.stack(shaken(with_norms))
    many.compile(PerTask("sgd", rates=1.0), "mse")
    train = examples(many, [8, 8, 8])
    x, y = train[1]
    # The second task can only become worse, and the third is not measured.
    answers = many.predict({"x": x, "task": np.full(8, 1)}, verbose=0)
    held_out = [(*each, np.ones(8)) for each in (train[0], (x, answers), train[2])]
    held_out[2][2][:] = 0
    validation = TaskBatches(held_out, many)
    start = keras_psp.extract(many, 2).get_weights()
    stop = StopEachTask(validation, patience=1, restore_best=best)
    with np.errstate(invalid="ignore"):  # Of the third task.
        batches = TaskBatches([train[0], (x + 5, y), train[2]], many)
        many.fit(batches, epochs=5, callbacks=[stop], verbose=0)
        assert stop.stopped[1] in (1, 2)
        after = np.array(stop.losses)[stop.stopped[1] + 1 :, 1]
        np.testing.assert_allclose(after, after[0], rtol=1e-5)
        np.testing.assert_allclose(
            task_losses(many, validation)[1], after[0], rtol=1e-5
        )
    end = keras_psp.extract(many, 2).get_weights()
    assert max(abs(a - b).max() for a, b in zip(start, end, strict=True)) > 1e-3


def test_it_is_saved_and_grows_and_goes_on(tmp_path):
    models = dict(zip(("a", "b", "c"), shaken(encoder), strict=True))
    many = keras_psp.stack(models)
    many.compile(PerTask("adam", rates=1.0), "mse")
    data = dict(zip(models, examples(many, [4, 5, 6]), strict=True))
    many.fit(TaskBatches(data, many), verbose=0)
    many.save(tmp_path / "many.keras")
    again = keras.models.load_model(tmp_path / "many.keras")
    for model in (many, again):
        model.fit(TaskBatches(data, model), verbose=0)
        keras_psp.surgery.add_models(model, {"d": models["a"]})
    for ours, theirs in zip(many.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    again.remove_task("b")
    extracted = {name: keras_psp.extract(again, name) for name in "acd"}
    small = keras_psp.superpose(again, budget=2.0)
    assert list(small.task_names) == ["a", "c", "d"]
    same = keras_psp.superpose(extracted, budget=2.0)
    for ours, theirs in zip(small.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unknown_tasks():
    many = keras_psp.stack(encoder(), num_tasks=2)
    x = np.ones((2, 6), "float32")
    given = {"x": x, "task": np.array([1, 2])}
    many.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must lie in"):
        many.fit(given, x)
    many.jit_compile = keras.backend.backend() != "torch"
    if many.jit_compile:
        answers = many.predict(given, verbose=0)
        assert np.isfinite(answers[0]).all() and np.isnan(answers[1]).all()


def test_batches_hold_every_example_of_a_task_once():
    many = keras_psp.stack(encoder(), num_tasks=2)
    data = [(np.full((n, 6), k, "float32"), np.arange(n)) for k, n in enumerate((7, 4))]
    batches = TaskBatches(data, many, batch_size=3, seed=4)
    orders = []
    for _ in range(2):
        seen = [[], []]
        for i in range(batches.num_batches):
            x, y, *weight = batches[i]
            there = weight[0] > 0 if weight else np.ones(len(y), bool)
            assert x["task"].tolist() == [0] * 3 + [1] * 3
            assert np.array_equal(x["x"][there, 0], x["task"][there])
            for k in range(2):
                seen[k] += y[there & (x["task"] == k)].tolist()
        assert [sorted(each) for each in seen] == [list(range(7)), list(range(4))]
        orders.append(seen)
        batches.next_epoch()
    assert orders[0] != orders[1]


def quantized():
    model = encoder()
    model.layers[0].quantize("int8")
    return model


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def own():
    model = Own()
    model(np.ones((1, 2), "float32"))
    return model


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: keras_psp.stack(encoder()), ValueError, "num_tasks=None"),
        (lambda: keras_psp.stack(encoder(), 0), ValueError, "num_tasks=0"),
        (lambda: keras_psp.stack(encoder(), 1.5), TypeError, "num_tasks=1.5"),
        (lambda: keras_psp.stack([]), ValueError, r"models=\[\]"),
        (lambda: keras_psp.stack([1]), TypeError, "model=1"),
        (lambda: keras_psp.stack([encoder()] * 2, 2), ValueError, "2 models"),
        (lambda: keras_psp.stack([encoder(), with_norms()]), ValueError, "architect"),
        (lambda: keras_psp.stack(quantized(), 2), ValueError, "quantized"),
        (lambda: keras_psp.stack(own(), 2), ValueError, "functional or sequential"),
        (
            lambda: keras_psp.stack(keras_psp.stack(encoder(), 2), 2),
            ValueError,
            "input named 'task'",
        ),
        (
            lambda: keras_psp.stack(
                keras.Sequential([keras.Input((2,)), layers.ReLU()]), 2
            ),
            ValueError,
            "must have weights",
        ),
    ],
)
def test_what_cannot_be_stacked(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.once
def test_bad_batches_losses_and_rates():
    many = keras_psp.stack(encoder(), num_tasks=2)
    x = np.ones((2, 6), "float32")
    data = [(x, x)] * 2
    for bad, match in [
        ([(x, x)], "each of the 2 tasks"),
        ([(x, x), (x, x[:, :1])], "same shapes"),
        ([(x, x), (x, x, np.ones(2))], "all with weights or none"),
        ([x, x], "must have labels"),
        ({"a": (x, x)}, "names"),
    ]:
        with pytest.raises(ValueError, match=match):
            TaskBatches(bad, many)
    batches = TaskBatches(data, many)
    other = keras_psp.stack(encoder(), num_tasks=3)
    other.compile("sgd", "mse")
    with pytest.raises(ValueError, match="each of the 3 tasks"):
        other.fit(batches)
    many.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    with pytest.raises(ValueError, match="reduction='sum'"):
        many.fit(batches)
    many.compile(PerTask("sgd"), "mse")
    with pytest.raises(ValueError, match="needs an optimizer whose rates"):
        many.fit(batches, callbacks=[StopEachTask(batches)], verbose=0)
    with pytest.raises(ValueError, match="made with some"):
        many.optimizer.set_rates(0.5)
    many.compile(PerTask("sgd", rates=1.0), "mse")
    many.fit(batches, verbose=0)
    for bad in (-1.0, [1.0], {2: 1.0}):
        with pytest.raises(ValueError):
            many.optimizer.set_rates(bad)
    np.testing.assert_array_equal(many.optimizer.task_rates, [1, 1])
    many.compile(PerTask("sgd", rates=[1.0] * 3), "mse")
    with pytest.raises(ValueError, match="each of 2 tasks"):
        many.fit(batches, verbose=0)
    with pytest.raises(TypeError, match="TaskBatches"):
        task_losses(many, data)
    with pytest.raises(ValueError, match="loss="):
        task_losses(many, batches, 3)
    many.compile("sgd", "mse")
    many.remove_task(0)
    with pytest.raises(ValueError, match=r"without its tasks \(0,\)"):
        many.fit(batches, verbose=0)


def test_averages_are_those_of_the_weights_that_were_drawn():
    many = keras_psp.stack(encoder(), 2)
    many.compile(keras.optimizers.SGD(0.0, use_ema=True), "mse")
    x = np.ones((4, 6), "float32")
    many.fit({"x": x, "task": np.arange(4) % 2}, x, verbose=0)
    many.add_tasks(1)
    expected = many.predict({"x": x, "task": np.full(4, 2)}, verbose=0)
    many.fit({"x": x, "task": np.arange(4) % 2}, x, verbose=0)
    found = many.predict({"x": x, "task": np.full(4, 2)}, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
