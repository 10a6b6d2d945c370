"""Models of one architecture whose heads have other numbers of outputs."""

import keras
import keras_hub
import numpy as np
import pytest
from conftest import once
from keras import layers
from keras import ops

import keras_psp
from keras_psp.surgery import add_models
from keras_psp.surgery import remove_models

WIDTHS = (2, 14, 5)
X = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
TASKS = np.array([0, 1, 2] * 3)
LETTERS = "abcdefghijklmn"


def make_model(width, activation=None, is_nested=False, is_softmax_apart=False):
    keras.utils.set_random_seed(width)
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(8, "relu", name="hidden")(inputs)
    head = layers.Dense(width, activation, bias_initializer="uniform", name="head")
    if is_nested:
        head = keras.Sequential([keras.Input((8,)), head], name="top")
    outputs = head(hidden)
    if is_softmax_apart:
        outputs = layers.Softmax()(outputs)
    return keras.Model(inputs, outputs)


def answer(model, x=X, task=None):
    outputs = model(x if task is None else {"x": x, "task": task})
    return ops.convert_to_numpy(outputs)


def check_tasks(one, models, atol=1e-5):
    """Each task answers with its own outputs alone, mixed and extracted."""
    own = {k: answer(model) for k, model in enumerate(models)}
    mixed = answer(one, task=TASKS)
    for row, task in zip(range(len(X)), TASKS, strict=True):
        width = own[task].shape[1]
        np.testing.assert_allclose(mixed[row, :width], own[task][row], atol=atol)
        assert set(mixed[row, width:].tolist()) <= {0.0, float("-inf")}
    for task, expected in own.items():
        alone = answer(keras_psp.extract(one, task))
        np.testing.assert_allclose(alone, expected, atol=atol)


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "softmax"},
        once({}),
        once({"activation": "sigmoid", "is_nested": True}),
        once({"is_softmax_apart": True}),
    ],
)
def test_each_task_has_its_own_outputs(options):
    models = [make_model(width, **options) for width in WIDTHS]
    # The same hidden kernels, so that nothing interferes.
    for model in models[1:]:
        model.get_layer("hidden").set_weights(
            models[0].get_layer("hidden").get_weights()
        )
    one = keras_psp.superpose(models, base=models[0])
    check_tasks(one, models)


@pytest.mark.parametrize("how", [{}, once({"bits": 8})])
def test_files_and_new_tasks_keep_the_widths(how, tmp_path):
    models = [make_model(width) for width in WIDTHS]
    one = keras_psp.superpose(models, base=make_model(5), **how)
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    before = answer(read, task=TASKS)
    assert np.isneginf(before[0, 2:]).all()
    read.add_tasks(1)
    assert np.isfinite(answer(read, task=np.full(len(X), 3))).all()
    np.testing.assert_allclose(answer(read, task=TASKS), before, atol=1e-6)
    read.remove_tasks(n=2)
    assert read.get_layer("head").units_per_task == [2, 14]


def test_a_base_with_another_head_serves():
    models = [make_model(width) for width in WIDTHS]
    base = make_model(1000)
    for model in models:
        model.get_layer("hidden").set_weights(base.get_layer("hidden").get_weights())
    one = keras_psp.superpose(models, base=base)
    check_tasks(one, models)
    # A new task begins with the mean of the heads.
    one.add_tasks(1)
    mean = np.mean(
        [model.get_layer("head").get_weights()[1][:2] for model in models], 0
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(one.get_layer("head").bias)[3, :2], mean, atol=1e-6
    )


def test_heads_of_a_base_alone_are_no_reason_for_kernels_apart():
    models = [make_model(4), make_model(4)]
    one = keras_psp.superpose(models, base=make_model(9))
    assert isinstance(one.get_layer("head"), keras_psp.layers.PSPDense)


@pytest.mark.parametrize("how", [{"bits": 8}, once({"budget": 2.5})])
def test_heads_are_kept_in_few_bits(how, tmp_path):
    models = [make_model(width, "softmax") for width in WIDTHS]
    one = keras_psp.superpose(models, data=[X] * 3, **how)
    check_tasks(one, models, atol=0.02)
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    np.testing.assert_array_equal(answer(read, task=TASKS), answer(one, task=TASKS))


@pytest.mark.parametrize("how", [{}, once({"bits": 8})])
def test_models_are_added_with_heads_of_their_own(how):
    models = [make_model(width) for width in WIDTHS]
    one = keras_psp.superpose(models[:2], **how)
    before = answer(one, task=np.ones(len(X), int))
    add_models(one, models[2:])
    assert answer(keras_psp.extract(one, 2)).shape == (len(X), WIDTHS[2])
    remove_models(one, models[2:])
    np.testing.assert_allclose(
        answer(one, task=np.ones(len(X), int)), before, atol=1e-5
    )
    with pytest.raises(ValueError, match="no more outputs than the widest task"):
        add_models(one, [make_model(15)])
    assert one.num_tasks == 2


def test_training_gives_no_task_outputs_of_another():
    models = [make_model(width) for width in WIDTHS]
    one = keras_psp.superpose(models)
    one.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.array([width - 1 for width in WIDTHS])[TASKS]
    one.fit({"x": X, "task": TASKS}, labels, epochs=2, verbose=0)
    logits = one.predict({"x": X, "task": TASKS}, verbose=0)
    for task, width in enumerate(WIDTHS):
        assert np.isfinite(logits[TASKS == task, :width]).all()
        assert np.isneginf(logits[TASKS == task, width:]).all()
    assert all(np.isfinite(weight).all() for weight in one.get_weights())


@pytest.mark.once
def test_classifiers_of_keras_hub_have_their_own_classes():
    def make_classifier(width):
        keras.utils.set_random_seed(width)
        backbone = keras_hub.models.BertBackbone(
            20, 1, 2, 8, 16, dropout=0.0, max_sequence_length=5
        )
        return keras_hub.models.BertTextClassifier(backbone, width, dropout=0.0)

    models = [make_classifier(width) for width in WIDTHS]
    one = keras_psp.superpose(models, base=make_classifier(4))
    x = {
        "token_ids": np.arange(15).reshape(3, 5) % 20,
        "padding_mask": np.ones((3, 5), "int32"),
        "segment_ids": np.zeros((3, 5), "int32"),
    }
    mixed = one.predict({**x, "task": np.arange(3)}, verbose=0)
    for task, width in enumerate(WIDTHS):
        alone = keras_psp.extract(one, task)
        assert alone.num_classes == width
        logits = alone.predict(x, verbose=0)
        np.testing.assert_allclose(mixed[task, :width], logits[task], atol=1e-5)
        assert np.isneginf(mixed[task, width:]).all()


def test_the_unsure_task_is_found_with_heads_of_other_widths():
    models = [make_model(width) for width in WIDTHS]
    one = keras_psp.superpose(models)
    logits = [answer(keras_psp.extract(one, task)) for task in range(3)]
    shares = [np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in logits]
    entropy = [-(each * np.log(each)).sum(1) for each in shares]
    tasks, _ = keras_psp.infer_task(one, X, method="entropy")
    np.testing.assert_array_equal(tasks, np.argmin(entropy, axis=0))


@pytest.mark.parametrize(
    "units, error", [([2, 2], ValueError), ([2, 9, 2], ValueError), (2, TypeError)]
)
def test_widths_that_do_not_fit_are_refused(units, error):
    with pytest.raises(error, match="units_per_task"):
        keras_psp.layers.TaskDense(5, num_tasks=3, units_per_task=units)


def test_an_activation_that_shows_absent_outputs_is_refused():
    with pytest.raises(ValueError, match="activation"):
        keras_psp.layers.TaskDense(
            5, num_tasks=2, units_per_task=[2, 5], activation="tanh"
        )
    with pytest.raises(ValueError, match="The first layer that differs is 'head'"):
        keras_psp.superpose([make_model(width, "tanh") for width in WIDTHS])


def test_hidden_layers_of_other_widths_are_refused():
    models = [
        keras.Sequential(
            [keras.Input((6,)), layers.Dense(n, name="h"), layers.Dense(2)]
        )
        for n in (3, 4)
    ]
    with pytest.raises(ValueError, match="The first layer that differs is 'h'"):
        keras_psp.superpose(models)


def test_a_head_that_cannot_be_cut_is_refused():
    models = [make_model(width) for width in WIDTHS]
    for model in models:
        model.get_layer("head").kernel_constraint = keras.constraints.MaxNorm(1.0)
    with pytest.raises(ValueError, match="The first layer that differs is 'head'"):
        keras_psp.superpose(models)


@pytest.mark.once
def test_classes_keep_their_names(tmp_path):
    models = [make_model(width) for width in WIDTHS]
    for model, names in zip(
        models, ("no yes", " ".join(LETTERS), "v w x y z"), strict=True
    ):
        model.class_names = names.split()
    models.append(make_model(4))
    one = keras_psp.superpose(models[:2])
    assert one.class_names == (("no", "yes"), tuple(LETTERS))
    add_models(one, [models[2], models[3]])
    assert one.class_names == (("no", "yes"), tuple(LETTERS), tuple("vwxyz"), None)
    one.save(tmp_path / "one.keras")
    read = keras.saving.load_model(tmp_path / "one.keras")
    assert read.class_names == one.class_names
    assert keras_psp.extract(read, 1).class_names == tuple(LETTERS)
    read.remove_task(1)
    assert read.class_names == (("no", "yes"), None, tuple("vwxyz"), None)
    add_models(read, models[1:2])
    assert read.class_names == one.class_names
    read.remove_tasks(n=2)
    assert read.class_names == one.class_names[:2]
    for bad, message in (
        ([["no", "yes"]], "hold 2 lists"),
        ([["no"], None], "Task 0 has 2 outputs"),
        ({"paris": ["no", "yes"]}, "where the tasks have names"),
    ):
        with pytest.raises(ValueError, match=message):
            read.class_names = bad
    with pytest.raises(TypeError, match="must be strings"):
        read.class_names = [[1, 2], None]
    read.task_names = ["paris", "tokyo"]
    read.class_names = {"tokyo": list("ABCDEFGHIJKLMN"), "paris": None}
    assert read.class_names == (None, tuple("ABCDEFGHIJKLMN"))
    read.class_names = None
    assert keras_psp.extract(read, 0).name == read.name
