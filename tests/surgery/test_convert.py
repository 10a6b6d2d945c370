import re

import keras
import numpy as np
import pytest
import small_models
from conftest import once
from small_models import call
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers import TaskBatchNormalization

NUM_TASKS = 3


@pytest.mark.parametrize(
    "make, options",
    [
        (small_models.sequential, {}),
        (small_models.convolutional, {}),
        once(small_models.shared, {}),
        once(small_models.residual, {}),
        # These are converted on every backend by test_new_rows.py and test_golden.py.
        once(small_models.attentive, {}),
        once(small_models.of_all_ranks, {}),
        once(small_models.nested, {}),
        once(small_models.convolutional, {"context_over": "channels"}),
    ],
)
def test_every_task_begins_as_the_model(make, options, tmp_path):
    model = draw_weights(make())
    before = [np.array(weight) for weight in model.get_weights()]
    inputs = draw_inputs(model)
    given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    expected = call(model, given)
    converted = keras_psp.convert(model, NUM_TASKS, **options)
    assert isinstance(converted, keras_psp.models.TaskModel)
    assert converted.num_tasks == NUM_TASKS
    assert converted.name == model.name
    mixed = np.arange(6, dtype="int32") % NUM_TASKS
    for task in (mixed, mixed * 0 + 2):
        y = converted.predict({**inputs, "task": task}, verbose=0)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)

    # It learns tasks apart, and the original stays.
    converted.compile(keras.optimizers.SGD(0.1), "mse")
    data = {**inputs, "task": mixed * 0}
    converted.fit(data, np.ones_like(expected), verbose=0)
    y = converted.predict({**inputs, "task": mixed}, verbose=0)
    assert np.abs(y - expected)[mixed == 0].max() > 1e-3
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)

    # And what it has learned goes through a file, and into plain models.
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again, y = (call(each, {**inputs, "task": mixed}) for each in (loaded, converted))
    np.testing.assert_allclose(again, y, rtol=1e-6, atol=1e-6)
    for task in range(NUM_TASKS):
        plain = keras_psp.extract(loaded, task)
        alone = call(plain, given)[mixed == task]
        np.testing.assert_allclose(alone, y[mixed == task], rtol=1e-5, atol=1e-5)
    loaded.add_tasks(1)
    grown = call(loaded, {**inputs, "task": mixed})
    np.testing.assert_array_equal(grown, again)


@pytest.mark.once
def test_an_application_of_keras():
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=3, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:  # So that its answers to three images differ.
        if weight.name == "moving_variance":
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
        elif len(weight.shape) > 1:
            depthwise = weight.shape[-1] == 1
            scale = np.sqrt(2 / np.prod(weight.shape[: 2 if depthwise else -1]))
            weight.assign(rng.normal(size=weight.shape, scale=scale))
        else:
            weight.assign(weight + rng.normal(size=weight.shape, scale=0.1))
    x = rng.normal(size=(3, 32, 32, 3)).astype("float32")
    expected = call(model, x)
    assert 1e-2 < expected.std(axis=0).min() and expected.std() < 10
    converted = keras_psp.convert(model, NUM_TASKS)
    name = next(name for name in converted.input if name != "task")
    task = np.arange(3, dtype="int32")
    y = converted.predict({name: x, "task": task}, verbose=0)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    plain = keras_psp.extract(converted, 1)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-4)


def test_one_task_is_enough():
    model = draw_weights(small_models.sequential())
    x = draw_inputs(model)["x"]
    converted = keras_psp.convert(model, 1)
    expected = call(model, x)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-5)
    plain = keras_psp.extract(converted, 0)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-5)


@pytest.mark.once
def test_layers_keep_their_names_and_arguments():
    model = small_models.convolutional()
    converted = keras_psp.convert(model, NUM_TASKS, context="rotation")
    names = [layer.name for layer in converted.layers]
    assert sorted(names) == sorted([*(layer.name for layer in model.layers), "task"])
    conv = converted.get_layer("conv")
    assert isinstance(conv, PSPConv2D) and conv.strides == (2, 2)
    assert conv.context_over == "kernel"
    assert type(conv.context).__name__ == "Rotation"
    assert isinstance(converted.get_layer("head"), PSPDense)
    norm = converted.get_layer("norm_2")
    assert isinstance(norm, TaskBatchNormalization) and not norm.scale
    assert norm.beta.shape == (NUM_TASKS, 4)
    first, second = (
        keras.ops.convert_to_numpy(converted.get_layer(name).context.contexts)
        for name in ("conv", "groups")
    )
    assert first.shape == second.shape and np.abs(first - second).max() > 0.1


def test_a_shared_layer_is_shared():
    converted = keras_psp.convert(draw_weights(small_models.shared()), NUM_TASKS)
    both = [layer for layer in converted.layers if layer.name == "both"]
    assert len(both) == 1


@pytest.mark.parametrize(
    "layers",
    [["head"], "he.*", re.compile("HEAD", re.I), lambda layer: layer.name == "head"],
    ids=["names", "expression", "compiled", "predicate"],
)
def test_only_the_layers_asked_for(layers):
    model = draw_weights(small_models.convolutional())
    converted = keras_psp.convert(model, NUM_TASKS, layers=layers)
    kinds = {layer.name: type(layer) for layer in converted.layers}
    assert kinds["head"] is PSPDense
    assert kinds["conv"] is keras.layers.Conv2D
    assert kinds["norm"] is keras.layers.BatchNormalization
    x = draw_inputs(model)["image"]
    y = answers(converted, x)
    np.testing.assert_allclose(y, call(model, x), rtol=1e-5, atol=1e-5)


def test_layers_inside_a_model_are_found_by_name():
    model = draw_weights(small_models.nested())
    converted = keras_psp.convert(model, NUM_TASKS, layers=["inner_dense"])
    inner = converted.get_layer("inner")
    assert isinstance(inner.get_layer("inner_dense"), PSPDense)
    assert type(converted.get_layer("outer_dense")) is keras.layers.Dense


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OwnDenseAlone(keras.layers.Dense):
    pass


def test_what_cannot_be_converted_is_listed():
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.PReLU(name="own_slope"),
            OwnDenseAlone(2, name="own"),
            keras.layers.Dense(2, name="dense"),
        ]
    )
    with pytest.warns(UserWarning, match=r"'own_slope' \(PReLU\).*'own' \(Own.*share"):
        converted = keras_psp.convert(model, NUM_TASKS)
    assert type(converted.get_layer("own")) is OwnDenseAlone
    with pytest.raises(ValueError, match=r"no superposed counterpart: 'own'"):
        keras_psp.convert(model, NUM_TASKS, layers=["own", "dense"])
    with pytest.raises(ValueError, match=r"no superposed counterpart: 'own_slope'"):
        keras_psp.convert(model, NUM_TASKS, layers=".*pe")


def test_attention_is_converted_with_all_its_projections_or_not_at_all():
    x = keras.Input((3, 4), name="x")

    def make(**options):
        return keras.layers.MultiHeadAttention(2, 2, name="attention", **options)

    constrained = make(kernel_constraint="unit_norm")
    model = draw_weights(keras.Model(x, keras.layers.Dense(2)(constrained(x, x))))
    inputs = draw_inputs(model)["x"]
    with pytest.warns(UserWarning, match="'query' .*'key' .*'value' .*'attention_out"):
        converted = keras_psp.convert(model, NUM_TASKS)
    expected = call(model, inputs)
    np.testing.assert_allclose(answers(converted, inputs), expected, atol=1e-5)
    attention = make()
    model = keras.Model(x, keras.layers.Dense(2)(attention(x, x)))
    attention.trainable = False
    converted = keras_psp.convert(model, NUM_TASKS)
    assert [v.path for v in converted.trainable_variables] == [
        f"{model.layers[-1].name}/kernel",
        f"{model.layers[-1].name}/task_bias/bias",
    ]
    attention.query_dense.enable_lora(2)
    with pytest.raises(ValueError, match="quantized or has a LoRA.*'attention'"):
        keras_psp.convert(model, NUM_TASKS)


def test_bad_input():
    model = small_models.sequential()
    with pytest.raises(ValueError, match="No layer .* can be conv.*'z"):
        keras_psp.convert(model, NUM_TASKS, layers="z+")
    with pytest.raises(ValueError, match="There is no layer 'middle'"):
        keras_psp.convert(model, NUM_TASKS, layers=["first", "middle"])
    with pytest.raises(ValueError, match=r"be a regular expression .*layers='\(first'"):
        keras_psp.convert(model, NUM_TASKS, layers="(first")
    with pytest.raises(TypeError, match=r"`layers` must be a list.*layers=3 \(of type"):
        keras_psp.convert(model, NUM_TASKS, layers=3)
    with pytest.raises(ValueError, match="`num_tasks` must be a positive"):
        keras_psp.convert(model, 0)
    with pytest.raises(ValueError, match="Unknown context family"):
        keras_psp.convert(model, NUM_TASKS, context="binaries")
    with pytest.raises(TypeError, match="must be a Keras model"):
        keras_psp.convert(keras.layers.Dense(2), NUM_TASKS)
    with pytest.raises(ValueError, match="must be built"):
        keras_psp.convert(keras.Sequential([keras.layers.Dense(2)]), NUM_TASKS)
    with pytest.raises(ValueError, match="input named 'task' already"):
        keras_psp.convert(keras_psp.convert(model, NUM_TASKS, layers=["last"]), 2)

    for change in (
        lambda layer: layer.enable_lora(2),
        lambda layer: layer.quantize("int8"),
    ):
        model = small_models.sequential()
        change(model.get_layer("first"))
        with pytest.raises(ValueError, match="quantized or has a LoRA.*'first'"):
            keras_psp.convert(model, NUM_TASKS)
        keras_psp.convert(model, NUM_TASKS, layers=["last"])


def answers(model, x, task=0):
    name = next(name for name in model.input if name != "task")
    return small_models.answers(model, {name: x}, task)


def test_inputs_without_a_name_are_numbered():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    y = keras.layers.Dense(2)(keras.layers.Concatenate()(inputs))
    converted = keras_psp.convert(keras.Model(inputs, y), NUM_TASKS)
    assert list(converted.input) == ["input", "input_1", "task"]


def test_inputs_do_not_take_the_names_of_layers():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="input")])
    converted = keras_psp.convert(model, NUM_TASKS)
    assert list(converted.input) == ["input_input", "task"]
    assert isinstance(converted.get_layer("input"), PSPDense)
    x = np.ones((3, 4), "float32")
    expected = call(model, x)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-6)
    plain = keras_psp.extract(converted, 1)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-6)


def test_what_a_layer_has_adapted_to_is_kept(rng):
    norm = keras.layers.Normalization(name="norm")
    norm.adapt(rng.normal(3.0, 2.0, size=(20, 4)))
    inner = keras.Sequential([keras.Input((4,)), norm], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
    x = rng.normal(3.0, 2.0, size=(3, 4)).astype("float32")
    expected = call(model, x)
    with pytest.warns(UserWarning, match="'norm'"):
        converted = keras_psp.convert(model, NUM_TASKS)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-5)
    plain = keras_psp.extract(converted, 1)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-5)


def test_a_frozen_layer_stays_frozen(tmp_path):
    model = small_models.sequential()
    model.get_layer("first").trainable = False
    converted = keras_psp.convert(model, NUM_TASKS)
    assert [v.path for v in converted.trainable_variables] == ["last/kernel"]
    converted.get_layer("last").trainable = False
    converted.save(tmp_path / "model.keras")
    assert not keras.models.load_model(tmp_path / "model.keras").trainable_variables
    converted.get_layer("first").trainable = True
    paths = [v.path for v in converted.trainable_variables]
    assert paths == ["first/kernel", "first/task_bias/bias"]


def test_a_frozen_weight_stays_frozen():
    model = small_models.convolutional()
    model.get_layer("conv").bias.trainable = False
    model.get_layer("groups").kernel.trainable = False
    model.get_layer("norm").gamma.trainable = False
    names = ["conv", "groups"]  # And a norm that is not converted.
    converted = keras_psp.convert(model, NUM_TASKS, layers=[*names, "head"])
    assert [v.path for v in converted.trainable_variables] == [
        "conv/kernel",
        "norm/beta",
        "norm_2/beta",
        "head/kernel",
        "head/task_bias/bias",
    ]
    plain = keras_psp.extract(keras_psp.convert(model, NUM_TASKS), 1)
    paths = ["conv/kernel", "norm/beta", "norm_2/beta", "head/kernel", "head/bias"]
    assert [v.path for v in plain.trainable_variables] == paths


def test_layers_that_models_share_are_shared():
    dense = keras.layers.Dense(4, name="dense")
    table = keras.layers.PReLU(name="slopes")
    inner = keras.Sequential([keras.Input((4,)), dense, table], name="inner")
    x = keras.Input((4,), name="x")
    model = draw_weights(keras.Model(x, table(dense(inner(x)))))
    x = draw_inputs(model)["x"]
    with pytest.warns(UserWarning, match="'slopes'"):
        converted = keras_psp.convert(model, NUM_TASKS)
    expected = call(model, x)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-5)
    assert converted.get_layer("inner").get_layer("dense") is converted.get_layer(
        "dense"
    )
    plain = keras_psp.extract(converted, 0)
    assert len(plain.weights) == len(model.weights)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-5)


def test_layers_called_by_keyword():
    x = keras.Input((3, 4), name="x")
    y = keras.layers.MultiHeadAttention(2, 2, name="attention")(query=x, value=x)
    inner = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(4)])
    y = keras.layers.Dense(2)(inputs=inner(inputs=y))
    model = draw_weights(keras.Model(x, y))
    x = draw_inputs(model)["x"]
    converted = keras_psp.convert(model, NUM_TASKS)
    assert isinstance(converted.get_layer("attention"), PSPMultiHeadAttention)
    expected = call(model, x)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-5)
    plain = keras_psp.extract(converted, 2)
    np.testing.assert_allclose(call(plain, x), expected, atol=1e-5)


def test_layers_whose_kernel_is_not_theirs_alone_are_left():
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(4, kernel_constraint="unit_norm", name="bound"),
            keras.layers.Dense(4, activation=keras.layers.PReLU(), name="sloped"),
            keras.layers.EinsumDense("bd,de->bde", (4, 3), name="outer"),
            keras.layers.Reshape((4, 3, 1)),
            keras.layers.SeparableConv2D(4, 2, name="separable"),
            keras.layers.Flatten(),
            keras.layers.Lambda(lambda x: 2.0 * x),
            keras.layers.Dense(2, name="last"),
        ]
    )
    draw_weights(model)
    x = draw_inputs(model)["x"]
    left = r"'bound' \(Dense\), 'sloped' \(Dense\), 'outer' .*, 'separable' .*share"
    with pytest.warns(UserWarning, match=left):
        converted = keras_psp.convert(model, NUM_TASKS)
    expected = call(model, x)
    np.testing.assert_allclose(answers(converted, x), expected, atol=1e-5)


def test_vocabularies_are_kept():
    lookup = keras.layers.IntegerLookup(vocabulary=[3, 5, 7])
    x = keras.Input((2,), dtype="int32", name="x")
    y = keras.layers.Embedding(4, 3, name="table")(lookup(x))
    y = keras.layers.Dense(2)(keras.layers.Flatten()(y))
    model = keras.Model(x, y)
    x = np.array([[3, 5], [7, 9]], "int32")
    with pytest.warns(UserWarning, match="'table'"):
        converted = keras_psp.convert(model, NUM_TASKS)
    np.testing.assert_allclose(answers(converted, x), call(model, x), atol=1e-5)


def test_a_model_with_a_call_of_its_own_keeps_it():
    class Doubled(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs)

    x = keras.Input((4,), name="x")
    model = Doubled(x, keras.layers.Dense(2)(x))
    converted = keras_psp.convert(model, NUM_TASKS)
    assert isinstance(converted, Doubled)
    x = np.ones((3, 4), "float32")
    with keras_psp.task(1):
        np.testing.assert_allclose(call(converted, x), call(model, x), atol=1e-5)


def test_inputs_that_are_no_tensors_are_refused():
    nested = {"a": [keras.Input((2,)), keras.Input((2,))]}
    y = keras.layers.Dense(2)(keras.layers.Add()(nested["a"]))
    with pytest.raises(ValueError, match="must hold tensors alone"):
        keras_psp.convert(keras.Model(nested, y), NUM_TASKS)


def test_predicting_leaves_no_trace_in_models_that_are_built_later():
    """On JAX it left a call open, and with it `training=False` in every later model."""

    class Seen(keras.layers.Layer):
        def call(self, inputs, training=None):
            seen.append(training)
            return inputs

    converted = keras_psp.convert(small_models.sequential(), NUM_TASKS)
    converted.compile("sgd", "mse")
    x = np.ones((3, 5), "float32")
    converted.predict({"x": x, "task": np.zeros(3, "int32")}, verbose=0)
    data = {"x": x, "task": np.zeros(3, "int32")}
    converted.evaluate(data, np.zeros((3, 3), "float32"), verbose=0)
    seen = []
    Seen()(keras.Input((2,)))
    assert seen and not any(each is False for each in seen)


def test_an_input_may_be_left_out_and_a_layer_be_called_as_the_task():
    class Sum(keras.layers.Layer):
        def call(self, x, more=None):
            return x if more is None else x + more

        def compute_output_spec(self, x, more=None):
            return keras.KerasTensor(x.shape, x.dtype)

    x, more = keras.Input((4,), name="x"), keras.Input((4,), name="more", optional=True)
    y = keras.layers.Dense(2, name="task")(Sum(name="sum")(x, more))
    model, x = keras.Model([x, more], y), np.ones((3, 4), "float32")
    converted = keras_psp.convert(model, NUM_TASKS)
    plain = keras_psp.extract(converted, 1)
    for more in (None, x):
        given, expected = {"x": x, "more": more}, call(model, [x, more])
        for answers in (
            call(converted, {**given, "task": np.arange(3)}),
            call(plain, given),
        ):
            np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert [each.name for each in model.layers][-1] == "task"
