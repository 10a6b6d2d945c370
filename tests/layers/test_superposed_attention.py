import keras
import layer_checks
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from keras import layers
from keras import ops
from layer_checks import NUM_TASKS
from layer_checks import SelfAttention
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp import contexts
from keras_psp.layers import PSPGroupQueryAttention
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers._superposed_attention import projections
from keras_psp.models import TaskModel

SHAPE = (10, 3, 6)


def fill(layer, *shapes):
    layer.build(*shapes)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if "contexts" not in weight.path:
            weight.assign(rng.normal(scale=0.5, size=weight.shape))
    return layer


def make(context="rotation", dtype=None, **kwargs):
    if BACKEND == "jax" and dtype == "mixed_float16":
        dtype = "mixed_bfloat16"  # Keras' attention, compiled for a CPU, has no other.
    kwargs |= {"num_tasks": NUM_TASKS, "context": context, "dtype": dtype}
    layer = SelfAttention(2, 3, **kwargs)
    fill(layer, SHAPE, SHAPE)
    if layer.use_bias:  # To which a softmax over the keys is blind.
        key = layer.key_dense
        (key.bias if key.task_bias is None else key.task_bias.bias).trainable = False
    return layer


def make_base(**kwargs):
    return make(base=True, bias_per_task=True, **kwargs)


def make_low_rank(**kwargs):
    return make_base(rank=2, **kwargs)


def weights(projection, k):
    kernel = to_numpy(projection.task_kernel(k))
    if projection.task_bias is not None:
        return kernel, to_numpy(projection.task_bias.bias)[k]
    return kernel, to_numpy(projection.bias) if projection.use_bias else 0.0


def reference(layer, x, k):
    of_query, of_key, of_value, of_output = (
        weights(projection, k) for projection in projections(layer)
    )
    query, key, value = (
        np.einsum("btd,dnh->bnth", x, kernel) + np.expand_dims(bias, 1)
        for kernel, bias in (of_query, of_key, of_value)
    )
    scores = np.exp(query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1]))
    heads = scores / scores.sum(axis=-1, keepdims=True) @ value
    return np.einsum("bnth,nhd->btd", heads, of_output[0]) + of_output[1]


@pytest.mark.parametrize("check", layer_checks.CHECKS, ids=lambda f: f.__name__)
def test_layer(check):
    check(make_low_rank, reference, SHAPE)


MULTI, GROUPS = (2, 3), (3, 4, 2)
CASES = {
    "dims": (MULTI, dict(output_shape=5), {}),
    "causal": (MULTI, dict(use_bias=False), dict(use_causal_mask=True)),
    "gate": (MULTI, dict(use_gate=True, sliding_window=2), {}),
    "scores": (MULTI, dict(value_dim=4), dict(return_attention_scores=True)),
    "mask": (MULTI, dict(attention_axes=1), dict(attention_mask="some")),
    "groups": (GROUPS, {}, dict(use_causal_mask=True)),
    "groups-gate": (GROUPS, dict(use_gate=True, use_bias=False), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_task_is_the_keras_layer_with_its_kernels(name):
    arguments, options, called = CASES[name]
    ours, plain = (
        (PSPMultiHeadAttention, layers.MultiHeadAttention)
        if arguments is MULTI
        else (PSPGroupQueryAttention, layers.GroupQueryAttention)
    )
    query, task = draw((10, 3, 6))
    value, key = draw((10, 4, 6), 1)[0], draw((10, 4, 6), 2)[0]
    if "attention_mask" in called:
        mask = np.random.default_rng(3).uniform(size=(10, 3, 4)) < 0.7
        called = {"attention_mask": ops.convert_to_tensor(mask | (mask[:, :, :1] == 0))}
    layer = ours(*arguments, num_tasks=NUM_TASKS, **options)
    fill(layer, query.shape, value.shape, key.shape)
    plain = plain(*arguments, **options)
    plain.build(query.shape, value.shape, key.shape)
    answers = layer(query, value, key, task=task, **called)
    for k in range(NUM_TASKS):
        for ours, theirs in zip(projections(layer), projections(plain), strict=True):
            theirs.set_weights(weights(ours, k)[: 1 + ours.use_bias])
        expected = plain(query, value, key, **called)
        pairs = zip(
            keras.tree.flatten(answers), keras.tree.flatten(expected), strict=True
        )
        for y, of_task in pairs:
            y, of_task = to_numpy(y)[task == k], to_numpy(of_task)[task == k]
            np.testing.assert_allclose(y, of_task, rtol=1e-4, atol=1e-5)


def test_masks_of_keras_are_heard():
    tokens = np.array([[1, 2, 0], [3, 0, 0], [2, 1, 3]], "int32")
    task = np.array([1, 0, 1], "int32")
    table = layers.Embedding(4, 6, mask_zero=True)
    layer, plain = make(), layers.MultiHeadAttention(2, 3)
    plain.build(SHAPE, SHAPE)
    x = keras.Input((3,), dtype="int32", name="x")
    index = keras.Input((), dtype="int32", name="task")
    y = table(x)
    model = TaskModel({"x": x, "task": index}, layer(y, task=index, value_or_task=y))
    y = model.predict({"x": tokens, "task": task}, verbose=0)
    for ours, theirs in zip(projections(layer), projections(plain), strict=True):
        theirs.set_weights(weights(ours, 1))
    embedded = table(x)
    alone = keras.Model(x, plain(embedded, embedded)).predict(tokens, verbose=0)
    np.testing.assert_allclose(y[[0, 2]], alone[[0, 2]], rtol=1e-4, atol=1e-5)
    padded = tokens.copy()
    padded[0, 2] = 3
    other = model.predict({"x": padded, "task": task}, verbose=0)
    assert np.abs(other - y)[0, :2].max() > 1e-3


def test_contexts_are_independent_and_weights_have_stable_paths():
    layer = make(name="attention")
    names = ["query", "key", "value", "attention_output"]
    assert [v.path for v in layer.weights] == [
        f"attention/{name}/{weight}"
        for name in names
        for weight in ("kernel", "bias", "context/contexts")
    ]
    rows = [to_numpy(p.context.contexts) for p in projections(layer)]
    for i in range(4):
        for j in range(i):
            assert np.abs(rows[i] - rows[j]).max() > 0.1
    again = [to_numpy(p.context.contexts) for p in projections(make())]
    np.testing.assert_array_equal(rows, again)


def test_config_is_that_of_the_keras_layer_and_ours():
    more = {"num_tasks", "context"}
    plain = layers.MultiHeadAttention(2, 3).get_config()
    ours = PSPMultiHeadAttention(2, 3, num_tasks=4).get_config()
    assert set(ours) == set(plain) | more
    plain = layers.GroupQueryAttention(2, 4, 2).get_config()
    ours = PSPGroupQueryAttention(2, 4, 2, num_tasks=4).get_config()
    assert set(ours) == set(plain) | more


def test_files_keep_the_answers_and_grow(tmp_path):
    layer, (x, task) = make_base(), draw(SHAPE)
    model = functional(layer, SHAPE)
    inputs = {"image": x, "task": task}
    expected = to_numpy(model(inputs))
    model.add_tasks(2)
    y = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    layer.key_dense.task_bias.bias.trainable = True  # Keras' files know no flags.
    model.compile("adam", "mse")
    model.fit({"image": x, "task": task + 2}, expected, verbose=0)
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.num_tasks == NUM_TASKS + 2
    assert [v.path for v in again.weights] == [v.path for v in model.weights]
    np.testing.assert_array_equal(to_numpy(again(inputs)), expected)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("mode", [once("int8"), once("int4")])
def test_files_keep_what_is_quantized(mode, tmp_path):
    model, (x, task) = functional(make_base(), SHAPE), draw(SHAPE)
    data = {"image": x, "task": task}
    model.quantize(mode)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kinds = [weight.dtype for weight in loaded.weights]
    assert kinds == [weight.dtype for weight in model.weights] and "int8" in kinds
    expected = model.predict(data, verbose=0)
    np.testing.assert_allclose(loaded.predict(data, verbose=0), expected, atol=1e-5)


def test_layers_shown_the_same_context_grow_apart():
    context = contexts.Binary(2, seed=3)
    x, task = keras.Input((3, 6), name="x"), keras.Input((), dtype="int32", name="task")
    y = PSPMultiHeadAttention(2, 3, context=context)(x, x, task=task)
    y = PSPMultiHeadAttention(2, 3, context=context)(y, y, task=task)
    model = TaskModel({"x": x, "task": task}, y).add_tasks(1)
    assert context.num_tasks == 2 and model.num_tasks == 3
    for layer in model.layers[2:]:
        assert [p.num_tasks for p in projections(layer)] == [3] * 4
    few = PSPMultiHeadAttention(1, 2, num_tasks=2, context="hadamard")
    few.build(SHAPE, SHAPE)
    with pytest.raises(ValueError, match="hold at most 2"):
        few.add_tasks(1)
    assert [p.num_tasks for p in projections(few)] == [2] * 4


def test_soft_contexts_that_are_sure_are_indices():
    layer, (x, task) = make_base(), draw(SHAPE)
    soft = np.eye(NUM_TASKS, dtype="float32")[task]
    np.testing.assert_allclose(
        to_numpy(layer(x, soft)), to_numpy(layer(x, task)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(BACKEND == "torch", reason="which warns while it compiles")
def test_jit_compiled():
    layer, (x, task) = make_base(), draw(SHAPE)
    expected = to_numpy(layer(x, task))
    model = functional(layer, SHAPE)
    model.compile("sgd", "mse", jit_compile=True)
    task[3] = NUM_TASKS
    y = model.predict_on_batch({"image": x, "task": task})
    known = np.arange(10) != 3
    assert np.isnan(y[3]).all()
    np.testing.assert_allclose(y[known], expected[known], rtol=1e-4, atol=1e-5)
    model.train_on_batch({"image": x, "task": task % NUM_TASKS}, expected)


def test_a_failed_call_leaves_no_task_behind():
    layer = make()
    with pytest.raises(ValueError, match="one index for each example"):
        layer(draw(SHAPE)[0], [0, 1])
    with pytest.raises(ValueError, match="with a `task`, or inside"):
        layer.query_dense(np.ones(SHAPE, "float32"))


def test_bad_arguments():
    layer = PSPMultiHeadAttention(2, 3, num_tasks=2)
    x = np.ones(SHAPE, "float32")
    with pytest.raises(ValueError, match="with a `task`, or inside"):
        layer(x, x)
    with pytest.raises(ValueError, match="num_tasks"):
        PSPMultiHeadAttention(2, 3)
    with pytest.raises(ValueError, match="Unknown context family"):
        PSPMultiHeadAttention(2, 3, num_tasks=2, context="binaries")
    with pytest.raises(ValueError, match="`rank` must be at most 6 for kernels"):
        PSPMultiHeadAttention(2, 3, num_tasks=2, rank=7)(x, x, task=0)
    with pytest.raises(ValueError, match="hold at most"):
        PSPMultiHeadAttention(2, 3, num_tasks=9, context="hadamard")(x, x, task=0)
