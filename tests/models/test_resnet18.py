import keras
import numpy as np
import pytest
from conftest import pairs_once

from keras_psp.layers import PSPConv2D
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models import resnet18

SMALL = {"num_classes": 3, "num_tasks": 4, "width": 0.0625, "stem": "imagenet"}


def make(**kwargs):
    return resnet18((16, 16, 3), **{**SMALL, **kwargs})


def draw(n=8):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(n, 16, 16, 3)).astype("float32")
    return {"image": image, "task": (np.arange(n) % 4).astype("int32")}


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.once
def test_the_plain_network_has_the_standard_number_of_weights():
    plain = {"context": None, "head": "shared", "norm": "shared"}
    model = resnet18((32, 32, 3), 10, num_tasks=1, **plain)
    assert count(model) == 11_173_962
    assert not any("keras_psp" in type(x).__module__ for x in [model, *model.layers])


@pytest.mark.once
def test_identity_contexts_are_the_plain_network():
    inputs = draw()
    a = make(head="multi", context=None)
    b = make(head="multi", context="identity")
    np.testing.assert_allclose(
        a.predict(inputs, verbose=0), b.predict(inputs, verbose=0), atol=1e-5
    )


def test_superposed_it_has_no_more_weights_but_the_norms():
    kwargs = {"context": "identity", "head": "shared", "norm": "batch"}
    assert count(make(norm="batch")) == count(make(**kwargs)) - 3  # Its head's bias.
    norms = sum(4 * 2**stage * (4 + (stage > 0)) for stage in range(4)) + 4
    assert count(make()) == count(make(norm="batch")) + 2 * 4 * norms


@pytest.mark.parametrize(
    "norm, head",
    pairs_once(
        ("task", "batch", "shared", "group"),
        ("superposed", "multi", "shared"),
        every=(
            ("task", "superposed"),
            ("batch", "multi"),
            ("shared", "shared"),
            ("group", "superposed"),
        ),
    ),
)
def test_heads_and_norms(norm, head):
    model = make(norm=norm, head=head)
    assert isinstance(model, TaskModel) and model.num_tasks == 4
    assert model.output_shape == (None, 3)
    names = [layer.name for layer in model.layers]
    for name in (
        "stem_conv",
        "stage_1_block_0_shortcut_conv",
        "stage_3_block_1_norm_1",
    ):
        assert name in names
    assert len([n for n in model.layers if isinstance(n, PSPConv2D)]) == 20


@pytest.mark.once  # Convolutions are compiled in tests/layers/test_superposed_conv.py.
@pytest.mark.parametrize("context_over", ["kernel", "channels"])
def test_mixed_tasks_equal_task_by_task_compiled(context_over):
    inputs = draw()
    model = make(context_over=context_over, width=0.03)
    mixed = model.predict(inputs, verbose=0)
    for k in range(4):
        alone = {**inputs, "task": np.full(8, k, "int32")}
        y = model.predict(alone, verbose=0)
        mine = inputs["task"] == k
        np.testing.assert_allclose(mixed[mine], y[mine], rtol=1e-3, atol=1e-4)
    # Every task has a network of its own.
    same = {**inputs, "image": np.repeat(inputs["image"][:1], 8, axis=0)}
    y = model.predict(same, verbose=0)[:4]
    assert (np.abs(y[:, None] - y[None]).max(axis=-1) > 1e-3).sum() == 12


@pytest.mark.once
def test_one_task_trained_leaves_the_others_norms_bit_for_bit(tmp_path):
    model, inputs = make(width=0.03), draw()
    inputs["task"][:] = 2
    norms = [v for v in model.weights if "norm" in v.path]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in norms]
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    # By XLA, TensorFlow would compile it for a minute.
    jit_compile = keras.backend.backend() == "jax"
    model.compile("rmsprop", loss, jit_compile=jit_compile)
    model.fit(inputs, np.arange(8) % 3, verbose=0)
    for variable, old in zip(norms, before, strict=True):
        new = keras.ops.convert_to_numpy(variable)
        for k in (0, 1, 3):
            np.testing.assert_array_equal(new[k], old[k])
        assert not np.array_equal(new[2], old[2])
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(inputs, verbose=0), expected, atol=1e-6)


def test_kernels_start_alike_whatever_the_task():
    a, b = make(), make(context="identity", head="multi", norm="group")
    for name in ("stem_conv", "stage_2_block_0_conv_0"):
        kernels = [np.array(m.get_layer(name).get_weights()[0]) for m in (a, b)]
        np.testing.assert_array_equal(*kernels)
        fan_in = np.prod(kernels[0].shape[:3])
        assert kernels[0].std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.2)


@pytest.mark.once
def test_growing():
    model, inputs = make(width=0.03), draw()
    before = model.predict(inputs, verbose=0)
    assert model.add_tasks(2).num_tasks == 6
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), before)
    inputs["task"] += 2
    assert np.isfinite(model.predict(inputs, verbose=0)).all()


def test_images_of_another_size_or_channel_count_are_refused():
    model, inputs = make(width=0.03), draw()
    model.compile("sgd", "mse")
    image, target = inputs["image"], np.ones((8, 3))
    before = [np.array(w) for w in model.get_weights()]
    for bad in (image[:, :8], image[..., :1], image[0], image[..., 0]):
        x = {**inputs, "image": bad}
        with pytest.raises(ValueError, match=r"\(None, 16, 16, 3\)"):
            model(x)
        with pytest.raises(ValueError, match=r"\(None, 16, 16, 3\)"):
            model.predict(x, verbose=0)
        with pytest.raises(ValueError, match=r"\(None, 16, 16, 3\)"):
            model.fit(x, target, verbose=0)
        with pytest.raises(ValueError, match=r"\(None, 16, 16, 3\)"):
            model.evaluate(x, target, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"head": "none"}, ValueError, "Known: multi, shared, superposed"),
        ({"norm": "layer"}, ValueError, "Known: batch, group, shared, task"),
        ({"stem": "mnist"}, ValueError, "Known: cifar, imagenet"),
        ({"context_over": "images"}, ValueError, "`context_over` must be one of"),
        ({"context": None}, ValueError, "A superposed head needs a context"),
        ({"width": 0}, ValueError, "`width` must be a positive number"),
        ({"num_tasks": 0}, ValueError, "num_tasks=0"),
        ({"context": "hash"}, ValueError, "Known: binary, complex"),
        ({"context": None, "head": "shared", "rank": 2}, ValueError, "context=None"),
        ({"rank": 1.5}, TypeError, "rank=1.5"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, None)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="`input_shape` must be"):
        resnet18(shape, 3, 2)


def test_layers_that_disagree_are_refused():
    from keras_psp.layers import PSPDense
    from keras_psp.layers import TaskDense

    image = keras.Input((4,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = PSPDense(4, num_tasks=3, name="below")(image, task)
    x = TaskDense(2, num_tasks=4, name="above")(x, task)
    with pytest.raises(ValueError, match="'below': 3, 'above': 4"):
        TaskModel({"image": image, "task": task}, x)
    assert mlp((4,), 2, num_tasks=3, head="multi").num_tasks == 3
