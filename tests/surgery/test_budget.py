"""`superpose(budget=)`: K models in a given memory."""

import keras
import numpy as np
import pytest
from conftest import once
from keras import ops
from small_models import draw_weights

import keras_psp
from keras_psp._reading.graph import Graph
from keras_psp._reading.listen import Listener
from keras_psp._reading.plan import plan_models
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDepthwiseConv2D
from keras_psp.surgery import _compressed
from keras_psp.surgery import _inputs
from keras_psp.surgery._compressed import Walk
from keras_psp.surgery._embeddings import round_embeddings
from keras_psp.surgery._embeddings import rounds
from keras_psp.surgery._parts import Form
from keras_psp.surgery._parts import Wanted
from keras_psp.surgery._parts import fit
from keras_psp.surgery._rounding import Rounding
from keras_psp.surgery._rounding import rounded
from keras_psp.surgery._sensitivity import Sensitivity

RNG = np.random.default_rng(0)


def dense():
    return keras.Sequential(
        [
            keras.Input((24,), name="x"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(3),
        ]
    )


def convolutional():
    x = image = keras.Input((6, 6, 3), name="x")
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(3)(x))


def attentive():
    x = tokens = keras.Input((5, 8), name="x")
    x = keras.layers.MultiHeadAttention(2, 4)(x, x)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(tokens, keras.layers.Dense(3)(x))


def fine_tuned(build, num_tasks=3):
    """A base, and models whose weights differ a little from its."""
    base = build()
    models = []
    for _ in range(num_tasks):
        model = keras.models.clone_model(base)
        model.set_weights(
            [w + 0.1 * RNG.normal(size=w.shape) * np.std(w) for w in base.get_weights()]
        )
        models.append(model)
    shape = base.input_shape[1:]
    data = [RNG.normal(size=(40, *shape)).astype("float32") for _ in models]
    return base, models, data


def answers(one, data):
    """What each task answers."""
    tasks = [np.full(len(x), k, "int32") for k, x in enumerate(data)]
    inputs = {"x": np.concatenate(data), "task": np.concatenate(tasks)}
    return np.split(one.predict(inputs, verbose=0), len(data))


def differences(one, models, data):
    """Each task's mean squared error, as a share of its outputs' variance."""
    found = []
    for model, x, ours in zip(models, data, answers(one, data), strict=True):
        own = model.predict(x, verbose=0)
        found.append(np.mean(np.square(ours - own)) / np.var(own))
    return found


@pytest.mark.parametrize(
    "build, budgets",
    [
        (dense, (0.4, 1.2)),
        once(convolutional, (1.0, 3.0)),
        once(attentive, (0.8, 3.0)),
    ],
)
def test_more_memory_is_nearer_and_never_more_than_asked_for(build, budgets, tmp_path):
    base, models, data = fine_tuned(build)
    errors = []
    for budget in budgets:
        one = keras_psp.superpose(models, base=base, data=data, budget=budget)
        memory = keras_psp.diagnostics.memory(one).total
        assert memory <= budget * 4 * base.count_params()
        errors.append(max(differences(one, models, data)))
    assert errors[1] < errors[0] < 0.3
    assert errors[1] < 1e-3
    # It is a model like any other: it can be saved, and taken apart again.
    path = tmp_path / "one.keras"
    one.save(path)
    loaded = keras.models.load_model(path)
    inputs = {"x": np.concatenate([x[:2] for x in data])}
    inputs["task"] = np.repeat(np.arange(3, dtype="int32"), 2)
    answers = one.predict(inputs, verbose=0)
    np.testing.assert_allclose(loaded.predict(inputs, verbose=0), answers, atol=1e-5)
    for k in range(3):
        plain = keras_psp.extract(one, k)
        own = plain.predict(data[k][:2], verbose=0)
        np.testing.assert_allclose(own, answers[2 * k : 2 * k + 2], atol=1e-5)


@pytest.mark.once
def test_is_never_worse_than_copies_in_as_many_bits():
    """Models without a common base are best kept as copies; the search does so."""
    models = [dense() for _ in range(3)]
    data = [RNG.normal(size=(60, 24)).astype("float32") for _ in models]
    one = keras_psp.superpose(models, data=data, budget=1.4)
    for layer in one.layers[-2:]:
        assert layer.low_rank.rank == "full"
    assert max(differences(one, models, data)) < 0.02


@pytest.mark.parametrize(
    "build, budget", [(dense, 0.4), once(dense, 0.8), once(convolutional, 1.5)]
)
def test_more_models_leave_the_present_tasks_as_they_are(build, budget):
    base, models, data = fine_tuned(build, 4)
    one = keras_psp.superpose(models[:3], base=base, data=data[:3], budget=budget)
    before = [each.copy() for each in answers(one, data[:3])]
    keras_psp.surgery.add_models(one, models[3:], data=data[3:])
    for ours, theirs in zip(answers(one, data[:3]), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert one.num_tasks == 4
    errors = differences(one, models, data)
    assert errors[3] < max(0.05, 3 * max(errors[:3]))
    keras_psp.surgery.remove_models(one, models[3:])
    for ours, theirs in zip(answers(one, data[:3]), before, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "build, budget", [once(dense, 0.4), (dense, 0.8), once(convolutional, 2.0)]
)
def test_a_new_task_begins_as_the_base(build, budget, tmp_path):
    base, models, data = fine_tuned(build)
    one = keras_psp.superpose(models, base=base, data=data, budget=budget)
    one.save(tmp_path / "one.keras")
    known = max(differences(one, models, data))
    for model in (one, keras.models.load_model(tmp_path / "one.keras")):
        model.add_tasks(1)
        new = differences(model, [*models, base], [*data, data[0]])[-1]
        assert new < max(0.02, 3 * known)


@pytest.mark.once
def test_depthwise_kernels_are_in_8_bits():
    base, models, data = fine_tuned(convolutional, 4)
    one = keras_psp.superpose(models[:3], base=base, data=data[:3], budget=2.0)
    (layer,) = (x for x in one.layers if isinstance(x, TaskDepthwiseConv2D))
    codes = layer.get_codes()
    keras_psp.surgery.add_models(one, models[3:], data=data[3:])
    own = np.stack([model.layers[3].get_weights()[0] for model in models])
    most = np.abs(own).max(axis=(1, 2), keepdims=True)
    assert np.all(np.abs(layer.kernels() - own) <= most / 100)
    for name, value in layer.get_codes().items():
        np.testing.assert_array_equal(value[:3], codes[name])
    # What is fitted behind them sees them as they are kept.
    graphs = [Graph(model) for model in (*models, base)]
    walk = Walk(graphs, *plan_models(graphs, in_parts=True), True, None, None)
    kernel = walk.plain(1).layers[3].get_weights()[0]
    np.testing.assert_array_equal(kernel, layer.kernels()[1])


@pytest.mark.once
def test_knows_kernels_alone_without_data():
    base, models, data = fine_tuned(dense)
    one = keras_psp.superpose(models, base=base, budget=2.0)
    assert max(differences(one, models, data)) < 0.02


def make_grouped(seed=0, with_head=False):
    x = image = keras.Input((6, 6, 4), name="x")
    x = keras.layers.Conv2D(8, 3, groups=2, name="grouped")(x)
    x = keras.layers.BatchNormalization()(x)
    if with_head:
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(4)(x) * keras.layers.Dense(4)(x)  # An operation.
    return draw_weights(keras.Model(image, x), seed)


@pytest.mark.parametrize("how", [{"bits": 8}, once({"budget": 4.0})])
def test_groups_of_filters_are_copied_as_they_are(how, rng):
    models = [make_grouped(seed, with_head=True) for seed in range(3)]
    one = keras_psp.superpose(models[:2], **how)
    keras_psp.surgery.add_models(one, models[2:])
    x = rng.normal(size=(4, 6, 6, 4)).astype("float32")
    for task, model in enumerate(models):
        expected = model.predict(x, verbose=0)
        found = one.predict({"x": x, "task": np.full(4, task)}, verbose=0)
        np.testing.assert_allclose(found, expected, atol=0.05 * expected.std())
        np.testing.assert_array_equal(
            keras_psp.extract(one, task).get_layer("grouped").get_weights()[0],
            model.get_layer("grouped").get_weights()[0],
        )


@pytest.mark.once
def test_bad_budgets():
    base, models, data = fine_tuned(dense)
    for budget, error in ((0.0, ValueError), (0.01, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="`budget` must be"):
            keras_psp.superpose(models, base=base, data=data, budget=budget)
    with pytest.raises(ValueError, match="at least") as caught:
        keras_psp.superpose(models, base=base, data=data, budget=0.01)
    least = float(str(caught.value).split("at least ")[1].split(" ")[0])
    one = keras_psp.superpose(models, base=base, data=data, budget=least)
    memory = keras_psp.diagnostics.memory(one).total
    assert memory <= least * 4 * base.count_params()
    with pytest.raises(ValueError, match="`ridge` must be positive"):
        keras_psp.superpose(models, data=data, budget=1.0, ridge=0)
    broken = keras.models.clone_model(base)
    broken.layers[0].kernel.assign(np.full((24, 32), np.nan))
    with pytest.raises(ValueError, match="Weights must be finite"):
        keras_psp.superpose([*models, broken], budget=1.0)
    grouped = [make_grouped(), make_grouped()]
    with pytest.raises(ValueError, match="kernel that can be kept in few bits"):
        keras_psp.superpose(grouped, budget=1.0)


@pytest.mark.once
@pytest.mark.parametrize(
    "form",
    [
        Form(base=3, rank=4, rank_bits=2),
        Form(base=4, core=(6, 5), core_bits=4),
        Form(base=4, core=(6, 5), core_bits=3, rank=2, rank_bits=1),
        Form(rank="full", rank_bits=3),
    ],
)
def test_parts_are_fitted_to_the_inputs(form):
    """Errors that inputs show are smaller than without the inputs."""
    kernels = RNG.normal(size=(1, 20, 12)) + 0.3 * RNG.normal(size=(4, 20, 12))
    x = RNG.normal(size=(4, 200, 6)) @ RNG.normal(size=(4, 6, 20))
    grams = np.swapaxes(x, 1, 2) @ x / 200 + 1e-2 * np.eye(20)
    wanted = Wanted(kernels, grams)
    blind = Wanted(kernels, np.broadcast_to(np.eye(20), (4, 20, 20)))
    error, other = (
        wanted.error(fit(form, each).kernels() - kernels).sum()
        for each in (wanted, blind)
    )
    assert error < 0.6 * other


@pytest.mark.once
@pytest.mark.parametrize("build", [dense, attentive])
def test_it_does_not_matter_how_many_inputs_are_kept(build, monkeypatch):
    base, models, data = fine_tuned(build)
    found = []
    for most in (_inputs.MOST_BYTES, 40_000, 0):
        monkeypatch.setattr(_inputs, "MOST_BYTES", most)
        one = keras_psp.superpose(models, base=base, data=data, rank=2)
        found.append(np.concatenate(answers(one, data)))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.once
def test_of_many_places_of_images_some_are_enough(monkeypatch):
    base, models, data = fine_tuned(convolutional)
    data = [np.concatenate([x, -x, x[::-1]]) for x in data]
    monkeypatch.setattr(_compressed, "BATCH_SIZE", 50)  # Three batches, one smaller.
    errors = []
    for number in (64, 6):
        monkeypatch.setattr(_inputs, "LEAST_ROWS", 3 * number)
        monkeypatch.setattr(_inputs, "ROWS_PER_NUMBER", number)
        one = keras_psp.superpose(models, base=base, data=data, budget=2.0)
        errors.append(max(differences(one, models, data)))
    assert errors[1] < 2 * errors[0] < 0.02
    graphs = [Graph(model) for model in (*models, base)]
    plan = plan_models(graphs, in_parts=True)
    walk = Walk(graphs, *plan, True, [{"x": x} for x in data], 0.1)
    rows = [walk._inputs.own(0, task) for task in range(3)]
    assert [[len(each) for each in batches] for batches in rows] == [[68, 68, 27]] * 3


@pytest.mark.once
def test_inputs_follow_what_has_been_fitted():
    base, models, data = fine_tuned(dense)
    graphs = [Graph(model) for model in (*models, base)]
    plan = plan_models(graphs, in_parts=True)
    walk = Walk(graphs, *plan, True, [{"x": x} for x in data], 0.1)
    (first,), (second,) = walk.groups[:2]
    before = walk.wanted(second, compressed=True)[0].grams
    walk.keep(first, 2 * walk.wanted(first, compressed=False)[0].kernels)
    after = walk.wanted(second, compressed=True)[0].grams
    assert (
        after.trace(axis1=1, axis2=2).min() > 2 * before.trace(axis1=1, axis2=2).max()
    )


@pytest.mark.once
def test_later_rows_make_up_for_errors_of_earlier_ones():
    x = RNG.normal(size=(100, 5)) @ RNG.normal(size=(5, 30))
    gram = x.T @ x / 100 + 1e-3 * np.eye(30)
    rows = RNG.normal(size=(30, 8))
    error, plain = (
        x @ (rounded(*Rounding(each).round(rows, 3), 3) - rows)
        for each in (gram, np.diag(np.diag(gram)))
    )
    assert np.square(error).sum() < 0.3 * np.square(plain).sum()


@pytest.mark.once
def test_biases_make_up_for_what_kernels_lose_in_the_mean():
    base, models, _ = fine_tuned(dense)
    data = [RNG.normal(3.0, 1.0, size=(60, 24)).astype("float32") for _ in models]
    one = keras_psp.superpose(models, base=base, data=data, bits=2)
    for model, x, ours in zip(models, data, answers(one, data), strict=True):
        own = model.predict(x, verbose=0)
        assert np.abs((ours - own).mean(0)).max() < 1e-4 * np.std(own)


@pytest.mark.parametrize("build", [dense, convolutional, once(attentive)])
def test_answers_change_as_derivatives_tell(build):
    """E^T H E is what a small error of a layer's outputs does to the answers."""
    model = build()
    shape = model.input_shape[1:]
    x = RNG.normal(size=(400, *shape)).astype("float32")
    layer = next(each for each in model.layers if hasattr(each, "kernel"))
    if build is attentive:
        layer = model.layers[1].output_dense
    before = model.predict(x, verbose=0)
    bias = keras.ops.convert_to_numpy(layer.bias)
    error = (0.01 * RNG.normal(size=bias.shape)).astype("float32")
    layer.bias.assign(bias + error)
    after = model.predict(x, verbose=0)
    layer.bias.assign(bias)
    expected = np.square(after - before).sum(1).mean() / before.var(0).sum()
    (products,) = Sensitivity(model, [layer]).measure([x[:200], x[200:]])
    damping = 0.1 * np.trace(products) / 1.1 / len(products)
    undamped = products - damping * np.eye(len(products))
    places = 1
    if build is convolutional:
        places = 16  # An error of the bias is one in all places.
    if build is attentive:
        places = 5
    assert expected < 2 * places * (error @ undamped @ error)
    if places == 1:
        np.testing.assert_allclose(error @ undamped @ error, expected, rtol=0.2)


@pytest.mark.parametrize(
    "options, parts",
    [
        once({"bits": 5}, {"low_rank": 5}),
        once({"rank": 4}, {"base": 4, "low_rank": 4}),
        once({"rank": 4, "bits": {"base": 8, "rank": 3}}, {"base": 8, "low_rank": 3}),
        ({"core": (6, 4), "bits": 3}, {"base": 3, "core": 3}),
        once({"rank": "full", "core": 6, "bits": 2}, {"core": 2, "low_rank": 2}),
    ],
)
def test_forms_may_be_fixed(options, parts):
    base, models, data = fine_tuned(dense)
    one = keras_psp.superpose(models, data=data, **options)
    first, last = (each for each in one.layers if isinstance(each, PSPDense))
    for layer in (first, last):
        for name in ("base", "core"):
            part = getattr(layer, name)
            assert (part and part.bits) == parts.get(name)
    low_rank = first.low_rank
    assert (low_rank and low_rank.bits) == parts.get("low_rank")
    if options.get("rank") == 4:
        assert first.low_rank.rank == 4
        assert last.low_rank.rank == "full"  # It has three outputs.
    assert max(differences(one, models, data)) < 0.6
    with_base = keras_psp.superpose(models, base=base, data=data, **options)
    assert max(differences(with_base, models, data)) < 0.6


@pytest.mark.once
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rank": 4, "budget": 1.0}, ValueError, "With a `budget`"),
        ({"bits": 4, "budget": 1.0}, ValueError, "With a `budget`"),
        ({"bits": 9}, ValueError, r"`bits` must be an integer in \[1, 8\]"),
        ({"bits": 0}, ValueError, "`bits` must be"),
        ({"bits": 2.5}, TypeError, "`bits` must be"),
        ({"bits": {"rank": 3}, "core": 2}, ValueError, "the layer has none of"),
        ({"rank": 0}, ValueError, "`rank` must be"),
        ({"rank": "half"}, TypeError, "`rank` must be"),
        ({"rank": 25}, ValueError, "`rank` must be at most 24, or 'full'"),
        ({"core": (2, 40)}, ValueError, r"`core` must be at most \(32, 32\)"),
        ({"core": 0}, ValueError, "`core` must be"),
        ({"rank": 2, "ridge": 0}, ValueError, "`ridge` must be positive"),
    ],
)
def test_bad_forms(options, error, message):
    _, models, data = fine_tuned(dense)
    with pytest.raises(error, match=message):
        keras_psp.superpose(models, data=data, **options)


@pytest.mark.once
def test_an_embedding_is_another_one_from_half_a_step_on():
    table = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    step = np.abs(table[2]).max() / 127

    def embedding(moved=0.0, dtype="float32"):
        layer = keras.layers.Embedding(5, 8, dtype=dtype)
        layer.build()
        values = table.copy()
        values[2, np.abs(values[2]).argmin()] += moved
        layer.set_weights([values])
        return layer

    for dtype, mode in (
        ("float32", "int8"),
        ("mixed_bfloat16", "int8"),
        ("mixed_float16", None),  # Keras cannot compute that in int8.
        ("float16", None),
    ):
        layer = embedding(dtype=dtype)
        round_embeddings(keras.Sequential([keras.Input((3,)), layer]))
        assert layer.quantization_mode == mode
    layer = embedding()
    round_embeddings(keras.Sequential([keras.Input((3,)), layer]))
    assert rounds(layer, embedding()) and not rounds(layer, embedding(1.1 * step))


class Careful(keras.layers.Layer):
    """Calls three layers, the second one twice, and goes on if one of them fails.

    It calls the first one `more` often, as code may that depends on its inputs.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = [keras.layers.Dense(4, "tanh") for _ in range(3)]
        self.more, self.ends = 0, 0

    def build(self, shape):
        for layer in self.inside:
            layer.build(shape)

    def call(self, x):
        first, second, third = self.inside
        try:
            for _ in range(1 + self.more):
                x = first(x)
            x = second(second(x))
        except Exception:
            x = ops.zeros_like(x)
        self.ends += 1
        return third(x)


def test_a_model_runs_no_further_than_to_the_layers_that_are_listened_to():
    block = Careful()
    x = keras.Input((4,), name="x")
    model = keras.Model(x, block(x))
    first, second, third = block.inside
    probe = Listener(model).probe([first, second])
    batch = {"x": RNG.normal(size=(5, 4)).astype("float32")}
    block.ends = 0
    heard = [probe.predict_on_batch(batch) for _ in range(3)]
    assert block.ends == 1  # The first run tells how often the layers are called.
    y = first(batch["x"])
    for inputs in heard:
        np.testing.assert_allclose(inputs[0][0], batch["x"])
        np.testing.assert_allclose(inputs[1][0], ops.convert_to_numpy(y), atol=1e-6)
        assert [len(each) for each in inputs] == [1, 2]
    whole = ops.convert_to_numpy(third(second(second(y))))
    found = ops.convert_to_numpy(model(batch["x"]))
    np.testing.assert_allclose(found, whole, atol=1e-6)
    block.more = 3
    assert [len(each) for each in probe.predict_on_batch(batch)] == [4, 2]
