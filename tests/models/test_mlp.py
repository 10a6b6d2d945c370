import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras import ops

from keras_psp import contexts
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.models import TaskModel
from keras_psp.models import mlp

SMALL = {"num_classes": 3, "num_tasks": 5, "units": 8, "depth": 2}


def draw(rng, n=10):
    image = rng.normal(size=(n, 4, 4, 1)).astype("float32")
    return {"image": image, "task": (np.arange(n) % 5).astype("int32")}


def make(**kwargs):
    return mlp((4, 4, 1), **{**SMALL, **kwargs})


def test_equals_numpy(rng):
    model, inputs = make(), draw(rng)
    logits = model.predict(inputs, verbose=0)
    for i, k in enumerate(inputs["task"]):
        x = inputs["image"][i].reshape(16)
        for name in ("dense_0", "dense_1", "logits"):
            layer = model.get_layer(name)
            kernel = layer.context.bind_kernel(layer.kernel, k)
            x = x @ ops.convert_to_numpy(ops.stop_gradient(kernel))
            x = x if name == "logits" else np.maximum(x, 0)
        np.testing.assert_allclose(logits[i], x, rtol=1e-4, atol=1e-5)


def test_structure():
    model = make()
    assert isinstance(model, TaskModel) and model.num_tasks == 5
    assert model.input["image"].shape == (None, 4, 4, 1)
    assert model.input["task"].shape == (None,)
    assert model.input["task"].dtype == "int32"
    assert model.output_shape == (None, 3)
    names = [v.path for v in model.trainable_weights]
    assert names == ["dense_0/kernel", "dense_1/kernel", "logits/kernel"]
    assert model.count_params() == sum(8 * n for n in (16, 8, 3)) + 5 * (16 + 8 + 8)


def test_hidden_layers_may_have_a_part_of_each_task(rng):
    model, plain = make(rank=2), make()
    layers = [layer for layer in model.layers if hasattr(layer, "low_rank")]
    ranks = [layer.low_rank and layer.low_rank.rank for layer in layers]
    assert ranks == [2, 2, None]
    inputs = draw(rng)  # At first the parts change nothing.
    expected = plain.predict(inputs, verbose=0)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)


def test_learnable_contexts_train():
    names = [v.path for v in make(learnable=True).trainable_weights]
    assert sum(name.endswith("context/contexts") for name in names) == 3


def test_context_may_be_an_example():
    model = make(context=contexts.Binary(5, learnable=True), seed=1)
    by_name = make(learnable=True, seed=1)
    for a, b in zip(model.get_weights(), by_name.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.trainable_weights[1].path == "dense_0/context/contexts"


def test_multi_head_has_a_kernel_for_each_task():
    model = make(head="multi")
    assert model.get_layer("logits").kernel.shape == (5, 8, 3)
    for a, b in zip(make().get_weights()[:2], model.get_weights()[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_shared_head_is_a_plain_dense(rng):
    model = make(head="shared")
    assert type(model.get_layer("logits")) is keras.layers.Dense
    assert isinstance(model.get_layer("dense_1"), PSPDense)
    assert model.predict(draw(rng), verbose=0).shape == (10, 3)


def test_no_hidden_layer_is_a_linear_model():
    model = mlp((7,), num_classes=3, num_tasks=5, depth=0)
    assert [v.path for v in model.trainable_weights] == ["logits/kernel"]


def test_seed_decides_kernels_and_contexts():
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    for a, b, c in zip(*(m.get_weights() for m in (one, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    a, b = (one.get_layer(name).context for name in ("dense_1", "logits"))
    assert a.seed != b.seed


def test_reloaded_from_file(rng, tmp_path):
    model, inputs = make(), draw(rng)
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, TaskModel)
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


# By Keras, of the format.
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.once
def test_reloaded_from_an_old_file(rng, tmp_path):
    model, inputs = make(), draw(rng)
    model.compile("adam", "mse")
    model.save(tmp_path / "model.h5")
    options = {"custom_objects": {"TaskModel": TaskModel}, "compile": False}
    again = keras.saving.load_model(tmp_path / "model.h5", **options)
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_array_equal(again.predict(inputs, verbose=0), expected)


def test_complex_network_equals_numpy(rng):
    model, inputs = make(complex_valued=True, context="complex"), draw(rng)
    logits = model.predict(inputs, verbose=0)
    for i, k in enumerate(inputs["task"]):
        z = inputs["image"][i].reshape(16) + 0j
        for name in ("dense_0", "dense_1", "logits"):
            layer = model.get_layer(name)
            cos, sin = ops.convert_to_numpy(layer.context.contexts)[k]
            real, imaginary = layer.get_weights()[:2]
            z = (z * (cos + 1j * sin)) @ (real + 1j * imaginary)
            if name != "logits":
                z = np.maximum(z.real, 0) + 1j * np.maximum(z.imag, 0)
        np.testing.assert_allclose(logits[i], z.real, rtol=1e-4, atol=1e-5)


def test_complex_network_is_saved_and_has_twice_the_weights(rng, tmp_path):
    model, inputs = make(complex_valued=True, context="complex"), draw(rng)
    sizes = [
        sum(int(np.prod(w.shape)) for w in m.trainable_weights) for m in (model, make())
    ]
    assert sizes[0] == 2 * sizes[1]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"num_tasks": 0}, ValueError, "num_tasks=0"),
        ({"num_tasks": 2.5}, TypeError, "num_tasks=2.5"),
        ({"context": "hash"}, ValueError, "Known: binary, complex, "),
        ({"head": "none"}, ValueError, "Known: multi, shared, superposed"),
        ({"head": "shared", "complex_valued": True}, ValueError, "superposed head"),
        ({"depth": -1}, ValueError, "depth=-1"),
        ({"depth": 1.5}, TypeError, "depth=1.5"),
        ({"units": 0}, ValueError, "units=0"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"rank": 2, "complex_valued": True}, ValueError, "complex_valued=True"),
        ({"rank": 2, "depth": 0}, ValueError, "depth=0"),
        ({"rank": 9}, ValueError, "`rank` must be at most 4"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    arguments = {"input_shape": (4,), "num_classes": 3, "num_tasks": 5, **kwargs}
    with pytest.raises(error, match=message):
        mlp(**arguments)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "__call__"])
def test_bad_tasks_leave_the_model_as_it_was(method, rng):
    model, inputs = make(), draw(rng)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    expected = model.predict(inputs, verbose=0)
    call = getattr(model, method)
    data = () if method in ("predict", "__call__") else (np.zeros(10, "int32"),)
    options = {} if method == "__call__" else {"verbose": 0}
    for bad, error in (
        (inputs["task"] + 0.5, TypeError),
        (inputs["task"] > 1, TypeError),
        (np.stack([inputs["task"]] * 2, axis=1), ValueError),
    ):
        with pytest.raises(error, match="`task` must"):
            call({"image": inputs["image"], "task": bad}, *data, **options)
    if method in ("fit", "__call__"):
        with pytest.raises(ValueError, match=r"\[0, 5\).*task=17"):
            call({"image": inputs["image"], "task": inputs["task"] + 17}, *data)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)


def test_one_image_is_no_batch(rng):
    inputs = draw(rng, 4)
    with pytest.raises(ValueError, match=r"'image' of shape.*shape \(4, 4, 1\)"):
        make().predict({**inputs, "image": inputs["image"][0]}, verbose=0)


@pytest.mark.parametrize("other", ["identity", "hadamard", "complex", "permutation"])
def test_weights_of_another_family_are_refused(other, rng, tmp_path):
    make(context=other, seed=1).save_weights(tmp_path / "other.weights.h5")
    model, inputs = make(), draw(rng)
    expected = model.predict(inputs, verbose=0)
    with pytest.raises(ValueError):
        model.load_weights(tmp_path / "other.weights.h5")
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)


def test_weights_of_another_family_are_named(tmp_path):
    make(context="hadamard").save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="not the weights of 5 tasks' Binary contexts"):
        make().load_weights(tmp_path / "other.weights.h5")


def test_bad_tasks_in_a_dataset_are_refused(rng):
    import tensorflow as tf

    model, inputs = make(), draw(rng)
    inputs["task"] = inputs["task"].astype("float32")
    data = tf.data.Dataset.from_tensor_slices((inputs, np.zeros(10))).batch(5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    for method in (model.fit, model.evaluate):
        with pytest.raises(TypeError, match="integer dtype"):
            method(data, verbose=0)
    with pytest.raises(TypeError, match="integer dtype"):
        model.predict(data.map(lambda x, y: x), verbose=0)


def test_unknown_task_is_nan_for_its_example_alone(rng):
    model, inputs = make(), draw(rng)
    inputs["task"][6] = 5
    if BACKEND == "torch":
        with pytest.raises(ValueError, match="task=5"):
            model.predict(inputs, verbose=0)
        return
    logits = model.predict(inputs, verbose=0)
    assert np.isnan(logits[6]).all() and np.isfinite(np.delete(logits, 6, 0)).all()


def test_weights_bring_their_seed_or_are_refused(tmp_path):
    def make(seed, context):
        return mlp((8,), 4, num_tasks=3, units=6, depth=1, context=context, seed=seed)

    path = tmp_path / "model.weights.h5"
    x = {"image": np.ones((3, 8), "float32"), "task": np.arange(3, dtype="int32")}
    first, other = make(1, "hadamard"), make(2**70, "hadamard")
    other.save_weights(path)
    first.load_weights(path)
    for model in (first, other):  # Added tasks are drawn with the seed of the others.
        model.add_tasks(1)
    for a, b in zip(find_contexts(first), find_contexts(other), strict=True):
        assert a.seed == b.seed
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a.contexts), ops.convert_to_numpy(b.contexts)
        )

    computed = contexts.Binary(3, storage="seed")
    first, other = make(1, computed), make(2, computed)
    before = first.predict(x, verbose=0)
    other.save_weights(path)
    with pytest.raises(ValueError, match="another seed.*seed=.*seed="):
        first.load_weights(path)
    np.testing.assert_array_equal(first.predict(x, verbose=0), before)
    first.save_weights(path)
    first.load_weights(path)


@pytest.mark.once
def test_attention_of_another_seed_is_refused(tmp_path):
    def make(seed):
        x = keras.Input((3, 4), name="x")
        task = keras.Input((), dtype="int32", name="task")
        context = contexts.Binary(2, seed=seed, storage="seed")
        attend = PSPMultiHeadAttention(2, 2, 2, context)
        return TaskModel({"x": x, "task": task}, attend(x, x, task=task))

    make(1).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="another seed"):
        make(2).load_weights(tmp_path / "model.weights.h5")


def find_contexts(model):
    return [layer.context for layer in model.layers if hasattr(layer, "context")]
