"""Layers are superposed in blocks, in wrappers and in models of any class."""

import pickle

import keras
import keras_hub
import numpy as np
import pytest
from conftest import once
from keras import layers
from keras import ops
from small_models import call
from small_models import draw_weights

import keras_psp
from keras_psp._core.task_layer import find_task_layers
from keras_psp.layers._original import layers_within
from keras_psp.layers._task_copies import TaskCopies

NUM_TASKS = 3
TASKS = np.arange(6, dtype="int32") % NUM_TASKS


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OwnBlock(layers.Layer):
    """As in keras.io's examples: no `build()`, and inputs given by their places."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.attention = layers.MultiHeadAttention(2, width)
        self.dense = keras.Sequential([layers.Dense(4, "relu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, inputs):
        x = self.norms[0](inputs + self.attention(inputs, inputs))
        return self.norms[1](x + self.dense(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OwnModel(keras.Model):
    head_class = layers.Dense

    def __init__(self, units=5, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units, activation="tanh")
        self.head = self.head_class(2)

    def call(self, inputs):
        return self.head(self.hidden(inputs))

    def get_config(self):
        return {"units": self.units, "name": self.name}


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Reads(OwnModel):
    """Uses a kernel without calling the layer."""

    def build(self, shape):
        self.hidden.build(shape)
        self.head.build((None, self.units))

    def call(self, inputs):
        return ops.matmul(self.hidden(inputs), self.head.kernel)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OwnDense(layers.Dense):
    pass


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OwnHead(OwnModel):
    """Has a layer without a counterpart."""

    head_class = OwnDense


class NoConfig(layers.Layer):
    """Holds a weight beside a layer, and returns more than a tensor. See T5."""

    def __init__(self, width):
        super().__init__(name="no_config")
        self.dense = layers.Dense(width)
        self.dropout = layers.Dropout(1e-9)  # Draws numbers, and drops nothing.

    def build(self, shape):
        self.token = self.add_weight(shape=shape[1:], name="token")
        self.dense.build(shape)

    def call(self, inputs):
        return self.dropout(self.dense(inputs + self.token)), None


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Pair(layers.Layer):
    """Calls a layer that returns a tensor and nothing."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own = NoConfig(3)

    def build(self, shape):
        self.own.build(shape)

    def call(self, inputs):
        return self.own(inputs)[0]


def squash(x):
    return ops.tanh(x)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class OddBlock(layers.Layer):
    """Uses the layers inside it in ways that cannot be seen from outside.

    Its config names a function only if that is not the default, as KerasHub's do.
    """

    def __init__(self, squash=squash, **kwargs):
        super().__init__(**kwargs)
        self.squash = squash
        self.own = NoConfig(3)
        self.positions = layers.Embedding(6, 3, name="positions")
        self.broadcast = layers.Embedding(6, 3, name="broadcast")
        self.read = layers.Dense(3, use_bias=False, name="read")
        self.folded = layers.Dense(3, name="folded")
        self.unused = layers.Dense(3, name="unused")

    def build(self, shape):
        self.own.build(shape)
        dense = (self.read, self.folded, self.unused)
        for layer in (self.positions, self.broadcast, *dense):
            layer.build(shape)

    def call(self, inputs):
        x, _ = self.own(inputs)
        numbers = ops.arange(6)  # As many as examples: none of them is one.
        x = x + self.positions(numbers) + self.broadcast(numbers[None])
        x = ops.matmul(x, self.read.kernel)
        x = self.squash(self.folded(ops.reshape(x, (-1, 3))))
        return ops.reshape(x, ops.shape(inputs))

    def get_config(self):
        config = super().get_config()
        if self.squash is not squash:
            config["squash"] = keras.saving.serialize_keras_object(self.squash)
        return config

    @classmethod
    def from_config(cls, config):
        if "squash" in config:
            config["squash"] = keras.saving.deserialize_keras_object(config["squash"])
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Patches(layers.Layer):
    """Reads a kernel, and alone knows how many numbers a patch has. See Gemma 4."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(5, name="hidden")
        self.read = layers.Dense(3, use_bias=False, name="read")

    def build(self, shape):
        self.hidden.build((None, None, 7))
        self.read.build((None, None, 5))

    def call(self, inputs):
        return ops.matmul(self.hidden(inputs), self.read.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


def words():
    return np.random.default_rng(0).integers(0, 11, (6, 4))


def block():
    x = keras.Input((4,), dtype="int32", name="x")
    y = OwnBlock(name="block")(layers.Embedding(11, 8, name="embedding")(x))
    y = layers.TimeDistributed(layers.Dense(3), name="each")(y)
    return keras.Model(x, layers.Flatten()(y)), words()


def embedded():
    x = keras.Input((4,), dtype="int32", name="x")
    y = layers.Embedding(11, 8, name="embedding")(x)
    return keras.Model(x, layers.Dense(3, name="head")(layers.Flatten()(y))), words()


def odd_block():
    x = np.random.default_rng(0).normal(size=(6, 6, 3)).astype("float32")
    inputs = keras.Input((6, 3), name="x")
    y = layers.Flatten()(OddBlock(name="block")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(y)), x


def pair():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    inputs = keras.Input((3,), name="x")
    return keras.Model(inputs, layers.Dense(2)(Pair(name="block")(inputs))), x


def patches():
    x = np.random.default_rng(0).normal(size=(6, 4, 7)).astype("float32")
    inputs = keras.Input((None, None), name="x")
    y = layers.GlobalAveragePooling1D()(Patches(name="block")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(y)), x


def recurrent():
    x = keras.Input((4,), dtype="int32", name="x")
    y = layers.Embedding(11, 4, name="embedding")(x)
    y = layers.Bidirectional(layers.LSTM(2), name="both")(y)
    return keras.Model(x, layers.Dense(2, name="head")(y)), words()


def video():
    x = np.random.default_rng(0).normal(size=(6, 2, 4, 4, 1)).astype("float32")
    inputs = keras.Input((2, 4, 4, 1), name="x")
    y = layers.TimeDistributed(layers.Conv2D(2, 3), name="each")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(y))), x


def own_model():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model = OwnModel()
    model(x)
    return model, x


def bert(vocabulary_size, length=4):
    return keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary_size,
        num_layers=1,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=length,
    )


def hub_classifier():
    backbone = bert(vocabulary_size=11)
    model = keras_hub.models.BertTextClassifier(backbone, 2, dropout=0.0)
    ones = np.ones((6, 4), "int32")
    x = {"token_ids": words(), "segment_ids": 0 * ones, "padding_mask": ones}
    return model, x


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Decoder(layers.Layer):
    """A small language model, as in KerasHub: a tied embedding and RMS norms."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = keras_hub.layers.ReversibleEmbedding(11, 4, name="tokens")
        self.norm = layers.RMSNormalization(name="norm")
        self.dense = layers.Dense(4, name="dense")

    def build(self, shape):
        self.tokens.build(shape)
        self.norm.build((*shape, 4))
        self.dense.build((*shape, 4))

    def call(self, inputs):
        return self.tokens(self.dense(self.norm(self.tokens(inputs))), reverse=True)


def decoder():
    x = keras.Input((4,), dtype="int32", name="x")
    y = Decoder(name="decoder")(x)
    y = layers.RMSNormalization(name="last")(y)
    y = layers.Add()([y, layers.Embedding(11, 11, name="more")(x)])
    return keras.Model(x, y), words()


MODELS = [block, recurrent, own_model, hub_classifier]
# By Keras, for a layer that a block never calls.
UNUSED = pytest.mark.filterwarnings("ignore:Gradients do not exist.*'block/unused")


def with_task(model, x, task):
    """Returns inputs with the task beside them."""
    task = np.broadcast_to(np.asarray(task, "int32"), 6)
    if isinstance(x, dict):
        return {**x, "task": task}
    name = "x" if isinstance(model, keras_psp.models.TaskModel) else "inputs"
    return {name: x, "task": task}


def ask(model, x, task):
    return model.predict(with_task(model, x, task), verbose=0)


def train(model, x, task, outputs):
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[])
    model.fit(with_task(model, x, task), np.ones_like(outputs), verbose=0)


@pytest.mark.filterwarnings("ignore:These layers have no superposed counterpart")
@UNUSED
# By KerasHub.
@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")
@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (block, "copy"),
        once(block, "freeze"),
        (odd_block, "copy"),
        (pair, "copy"),
        (decoder, "copy"),
        once(decoder, "freeze"),
        once(odd_block, "freeze"),
        (recurrent, "copy"),
        once(recurrent, "warn"),
        (video, "copy"),
        (own_model, "warn"),
        once(hub_classifier, "copy"),
        (hub_classifier, "freeze"),
    ],
)
def test_each_task_starts_as_the_model_trains_alone_is_saved_and_extracted(
    make, shared, tmp_path
):
    model, x = make()
    draw_weights(model)
    before = [np.array(w) for w in model.get_weights()]
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, NUM_TASKS, shared=shared)
    np.testing.assert_allclose(ask(one, x, TASKS), expected, atol=1e-5)
    assert not find_task_layers(model)
    train(one, x, 1, expected)
    mixed = ask(one, x, TASKS)
    own = [ask(one, x, k) for k in range(NUM_TASKS)]
    moved = [np.abs(y - expected).max() for y in own]
    assert moved[1] > 1e-3
    if shared != "warn":  # What moves the others is interference alone.
        assert max(moved[0], moved[2]) < moved[1]
    for k, y in enumerate(own):
        np.testing.assert_allclose(mixed[TASKS == k], y[TASKS == k], atol=1e-5)
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    assert type(read).__mro__[1:] == type(one).__mro__[1:]
    np.testing.assert_allclose(ask(read, x, TASKS), mixed, atol=1e-6)
    plain = keras_psp.extract(read, 1)
    np.testing.assert_allclose(plain.predict(x, verbose=0), own[1], atol=1e-5)
    assert not find_task_layers(plain)
    read.add_tasks(1)
    np.testing.assert_allclose(ask(read, x, TASKS), mixed, atol=1e-6)
    assert ask(read, x, NUM_TASKS).shape == expected.shape
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def tune(base, x, number):
    """Returns models like a base with other weights, and what they answer."""
    models = []
    for k in range(number):
        draw = np.random.default_rng(k + 1)
        model = type(base).from_config(base.get_config())
        model(x)
        model.set_weights(
            [
                w + 0.05 * draw.normal(size=w.shape) if w.dtype == "float32" else w
                for w in base.get_weights()
            ]
        )
        models.append(model)
    return models, [model.predict(x, verbose=0) for model in models]


# By KerasHub, and by Keras for blocks without a `build()`.
@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
@pytest.mark.filterwarnings("ignore:.build... was called on layer 'block'")
@pytest.mark.parametrize(
    ("make", "options", "allowed"),
    [
        once(recurrent, {"budget": 3.5}, 0.01),
        once(recurrent, {}, 0.2),
        (own_model, {"budget": 3.5}, 0.01),
        once(own_model, {"bits": 8}, 0.01),
        once(block, {}, 0.5),
        once(decoder, {}, 0.6),
        once(hub_classifier, {}, 0.05),
        once(hub_classifier, {"budget": 3.5}, 0.01),
    ],
)
def test_fine_tuned_models_are_kept_in_one(make, options, allowed, tmp_path):
    base, x = make()
    draw_weights(base)
    models, own = tune(base, x, NUM_TASKS)
    data = [x] * NUM_TASKS
    one = keras_psp.superpose(models, "fast_rotation", base, data, **options)
    floor = max(np.abs(base.predict(x, verbose=0) - y).max() for y in own)
    found = [ask(one, x, k) for k in range(NUM_TASKS)]
    errors = [np.abs(y - z).max() for y, z in zip(found, own, strict=True)]
    assert max(errors) < allowed and max(errors) < floor
    mixed = ask(one, x, TASKS)
    for k, y in enumerate(found):
        np.testing.assert_allclose(mixed[TASKS == k], y[TASKS == k], atol=1e-5)
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    np.testing.assert_allclose(ask(read, x, TASKS), mixed, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
@pytest.mark.filterwarnings("ignore:.build... was called on layer 'block'")
@pytest.mark.parametrize("make", [embedded, once(block), once(hub_classifier)])
def test_embeddings_that_all_share_are_rounded_within_a_budget(make, tmp_path):
    base, x = make()
    draw_weights(base)
    models, _ = tune(base, x, NUM_TASKS)
    for model in models:
        for weight, old in zip(model.weights, base.weights, strict=True):
            if "embeddings" in weight.path.split("/")[-1]:
                weight.assign(ops.convert_to_numpy(old))
    one = keras_psp.superpose(models[:2], base=base, data=[x] * 2, budget=3.5)
    held = [w for w in one.weights if w.dtype == "int8"]
    assert held and all(w.path.endswith("/embeddings") for w in held)
    found = [ask(one, x, k) for k in range(2)]
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    plain = keras_psp.extract(read, 1)
    assert not any(w.dtype == "int8" for w in plain.weights)
    np.testing.assert_allclose(plain.predict(x, verbose=0), found[1], atol=1e-5)
    keras_psp.surgery.add_models(read, models[2:], data=[x])
    for k, model in enumerate(models):
        y = ask(read, x, k)
        if k < 2:
            np.testing.assert_allclose(y, found[k], atol=1e-6)
        np.testing.assert_allclose(y, model.predict(x, verbose=0), atol=0.03)
    with pytest.raises(ValueError, match="share the weights of '.*embedding'"):
        keras_psp.surgery.add_models(read, [draw_weights(models[0], seed=5)], data=[x])


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16"])
def test_embeddings_of_16_bits(dtype):
    """Keras does not quantize those that are computed in float16."""

    def make(seed):
        x = keras.Input((4,), dtype="int32", name="x")
        y = layers.Embedding(11, 8, dtype=dtype, name="embedding")(x)
        y = layers.Dense(3, name="head")(layers.Flatten()(y))
        model = draw_weights(keras.Model(x, y), seed)
        table = np.random.default_rng(9).normal(size=(11, 8))
        model.get_layer("embedding").set_weights([table])
        return model

    models, x = [make(seed) for seed in range(3)], words()
    one = keras_psp.superpose(models[:2], data=[x] * 2, bits=8)
    mode = one.get_layer("embedding").quantization_mode
    assert mode == (None if dtype == "float16" else "int8")
    keras_psp.surgery.add_models(one, models[2:], data=[x])
    for k, model in enumerate(models):
        plain = keras_psp.extract(one, k)
        assert plain.get_layer("embedding").dtype_policy.name == dtype
        y = ask(one, x, k)
        # In 16 bits, rounded once more or less.
        np.testing.assert_allclose(plain.predict(x, verbose=0), y, atol=0.02)
        np.testing.assert_allclose(y, model.predict(x, verbose=0), atol=0.1)


@pytest.mark.once
def test_embeddings_and_norms_of_each_task_are_layers_of_this_package():
    model, x = decoder()
    one = keras_psp.convert(model, 2, shared="copy")
    kinds = {type(layer) for layer in find_task_layers(one)}
    assert kinds == {
        keras_psp.layers.PSPDense,
        keras_psp.layers.TaskEmbedding,
        keras_psp.layers.TaskReversibleEmbedding,
        keras_psp.layers.TaskRMSNormalization,
    }
    plain = keras_psp.extract(one, 1)
    assert type(plain.get_layer("last")) is layers.RMSNormalization
    assert type(plain.get_layer("more")) is layers.Embedding
    tokens = plain.get_layer("decoder").tokens
    assert type(tokens) is keras_hub.layers.ReversibleEmbedding
    with pytest.warns(UserWarning, match="'tokens' .ReversibleEmbedding., 'more'"):
        one = keras_psp.convert(model, 2)
    kinds = {type(layer) for layer in find_task_layers(one)}
    assert keras_psp.layers.TaskRMSNormalization in kinds
    assert keras_psp.layers.TaskEmbedding not in kinds


@pytest.mark.filterwarnings("ignore:These layers have no superposed counterpart")
@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize(
    ("make", "mode"),
    [(block, "int8"), once(hub_classifier, "int8"), once(hub_classifier, "int4")],
)
def test_a_quantized_layer_in_a_block_is_so_in_its_file(make, mode, tmp_path):
    base, x = make()
    one = keras_psp.convert(base, 2, context=None, rank=1, shared="freeze")
    one.quantize(mode)
    before = ask(one, x, 1)
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    np.testing.assert_allclose(ask(read, x, 1), before, atol=1e-6)
    plain = keras_psp.extract(read, 1)
    np.testing.assert_allclose(plain.predict(x, verbose=0), before, atol=1e-5)


def test_more_models_of_a_class_of_their_own_come_later():
    base, x = own_model()
    draw_weights(base)
    models, own = tune(base, x, NUM_TASKS)
    one = keras_psp.superpose(models[:2], "fast_rotation", base, [x] * 2, budget=3.5)
    keras_psp.surgery.add_models(one, models[2:], data=[x])
    np.testing.assert_allclose(ask(one, x, 2), own[2], atol=0.02)


def test_models_of_other_architectures_are_refused():
    base, x = own_model()
    other = OwnModel(units=6)
    other(x)
    with pytest.raises(ValueError, match="of one architecture"):
        keras_psp.superpose([base, other])


@pytest.mark.parametrize("make", [odd_block, once(patches)])
def test_models_that_differ_in_a_layer_read_without_a_call_have_its_block_each(
    make, tmp_path
):
    base, x = make()
    draw_weights(base)
    models, own = tune(base, x, NUM_TASKS)
    one = keras_psp.superpose(models[:2], base=base, rank=9, bits=32)
    keras_psp.surgery.add_models(one, models[2:])
    one.save(tmp_path / "one.keras")
    read = keras.models.load_model(tmp_path / "one.keras")
    mixed = ask(read, x, TASKS)
    for k, y in enumerate(own):
        np.testing.assert_allclose(mixed[TASKS == k], y[TASKS == k], atol=1e-5)
    plain = keras_psp.extract(read, 1)
    np.testing.assert_allclose(plain.predict(x, verbose=0), own[1], atol=1e-5)


@pytest.mark.once
def test_models_of_nothing_but_layers_without_a_counterpart_are_kept():
    base = keras.Sequential([keras.Input((4,), name="x"), OwnDense(2)])
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    models, own = tune(base, x, 2)
    one = keras_psp.superpose(models)
    for k, y in enumerate(own):
        np.testing.assert_allclose(ask(one, x, k), y, atol=1e-6)
    with pytest.raises(ValueError, match="must have a kernel"):
        keras_psp.superpose(models, base=base, budget=1.0)
    still = keras.Sequential([keras.Input((4,), name="x"), layers.ReLU()])
    with pytest.raises(ValueError, match="must have a layer that can be superposed"):
        keras_psp.superpose([still, still])


@pytest.mark.once
def test_models_that_differ_in_a_block_that_is_tied_to_another_are_refused():
    def build(seed):
        tokens = keras_hub.layers.ReversibleEmbedding(11, 4, name="tokens")
        x = keras.Input((4,), dtype="int32", name="x")
        y = layers.Dense(4, name="dense")(tokens(x))
        given = keras.ops.zeros_like(x[:, :2])
        head = keras_hub.layers.MaskedLMHead(token_embedding=tokens, name="head")
        return draw_weights(keras.Model(x, head(y, given)), seed)

    with pytest.raises(ValueError, match="used elsewhere too.*whose 'head' differ"):
        keras_psp.superpose([build(1), build(2)])


@pytest.mark.once
def test_models_are_kept_whose_blocks_use_layers_in_odd_ways():
    base, x = odd_block()
    draw_weights(base)
    models, _ = tune(base, x, NUM_TASKS)
    for model in models:
        model.get_layer("block").read.set_weights(
            base.get_layer("block").read.get_weights()
        )
    own = [model.predict(x, verbose=0) for model in models]
    one = keras_psp.superpose(models, base=base, bits=8)
    found = [ask(one, x, k) for k in range(NUM_TASKS)]
    np.testing.assert_allclose(found, own, atol=0.02)
    mixed = ask(one, x, TASKS)
    for k, y in enumerate(found):
        np.testing.assert_allclose(mixed[TASKS == k], y[TASKS == k], atol=1e-5)
    two = keras_psp.superpose(models[:2], base=base, bits=8)
    keras_psp.surgery.add_models(two, models[2:])
    np.testing.assert_allclose(ask(two, x, 2), own[2], atol=0.05)


def test_a_subclassed_model_that_reads_a_kernel_shares_it():
    model, x = Reads(), np.ones((6, 4), "float32")
    model(x)
    expected = call(model, x)
    with pytest.warns(UserWarning, match=r"'dense\w*' \(Dense\)\. All tasks share"):
        one = keras_psp.convert(model, NUM_TASKS)
    assert type(one.head) is layers.Dense
    np.testing.assert_allclose(call(one, with_task(one, x, TASKS)), expected, atol=1e-5)


@pytest.mark.once
def test_what_is_frozen_stays_so_in_files(tmp_path):
    for make in (block, own_head):
        model, x = make()
        expected = model.predict(x, verbose=0)
        keras_psp.convert(model, NUM_TASKS, None, rank=2, shared="freeze").save(
            tmp_path / "one.keras"
        )
        one = keras.models.load_model(tmp_path / "one.keras")
        train(one, x, 1, expected)
        np.testing.assert_allclose(ask(one, x, 0), expected, atol=1e-6)
        assert np.abs(ask(one, x, 1) - expected).max() > 1e-4


def own_head():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model = OwnHead()
    model(x)
    return model, x


@pytest.mark.once
def test_diagnostics_and_inference_see_what_is_inside():
    for make in (block, hub_classifier):
        model, x = make()
        one = keras_psp.convert(model, NUM_TASKS, shared="copy")
        parts = keras_psp.diagnostics.memory(one).parts
        assert parts["shared"] == 0 and parts["kernels"] == parts["base_kernels"] > 0
        found = keras_psp.diagnostics.interference(one, [x] * NUM_TASKS)
        assert len(found.layers) > 4
        assert all(np.isfinite(each.energies).all() for each in found.layers)
        tasks, _ = keras_psp.infer_task(one, x, from_logits=True)
        assert tasks.shape == (6,)


@pytest.mark.parametrize("make", [block, own_model, hub_classifier])
def test_an_unknown_task_never_becomes_an_answer(make):
    model, x = make()
    one = keras_psp.convert(model, NUM_TASKS, shared="copy")
    wrong = np.where(np.arange(6) == 3, NUM_TASKS, TASKS)
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="`task` must lie in"):
            ask(one, x, wrong)
    else:
        y = ask(one, x, wrong)
        assert np.isnan(y[3]).all()
        np.testing.assert_array_equal(np.isnan(y).all(-1), np.arange(6) == 3)
    with pytest.raises(ValueError, match="`task` must lie in"):
        one(with_task(one, x, wrong))
    with pytest.raises(ValueError, match="`task` must lie in"):
        train(one, x, wrong, np.ones((6, 2)))


@keras.saving.register_keras_serializable("test_blocks")
class Decides(keras.Model):
    """Returns booleans beside its scores, as models hand masks on, and spectra."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = layers.Dense(2)

    def call(self, inputs):
        scores = self.head(inputs)
        spectra = ops.cast(scores, "complex64")
        return {"scores": scores, "large": scores > 0, "spectra": spectra}


def test_outputs_of_other_dtypes():
    model, x = Decides(), np.random.default_rng(0).normal(size=(6, 4))
    model(x)
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, NUM_TASKS)
    found = one.predict(with_task(one, x, TASKS), verbose=0)
    np.testing.assert_array_equal(found["large"], expected["large"])
    np.testing.assert_allclose(found["spectra"], expected["spectra"], atol=1e-6)
    if keras.backend.backend() != "torch":  # Which refuses it.
        wrong = np.where(np.arange(6) == 3, NUM_TASKS, TASKS)
        found = one.predict(with_task(one, x, wrong), verbose=0)
        expected["large"][3] = False
        np.testing.assert_array_equal(found["large"], expected["large"])
        for name in ("scores", "spectra"):
            assert np.isnan(found[name]).all(-1).tolist() == [k == 3 for k in range(6)]


def test_a_model_of_its_own_class_takes_its_task_from_the_scope():
    model, x = own_model()
    draw_weights(model)
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, ["paris", "tokyo", "rome"])
    assert isinstance(one, OwnModel) and one.units == 5
    one.compile(keras.optimizers.SGD(0.1), "mse")
    with keras_psp.task("tokyo"):
        one.fit(x, np.ones((6, 2)), verbose=0)
        tokyo = one.predict(x, verbose=0)
    with keras_psp.task("rome"):
        rome = one.predict(x, verbose=0)
    assert np.abs(tokyo - rome).max() > 1e-3
    assert np.abs(rome - expected).max() < np.abs(tokyo - expected).max()
    with keras_psp.task(["tokyo", "rome"] * 3):
        mixed = one.predict(x, verbose=0)
    np.testing.assert_allclose(mixed[::2], tokyo[::2], atol=1e-5)
    np.testing.assert_allclose(mixed[1::2], rome[1::2], atol=1e-5)
    with pytest.raises(ValueError, match=r"Did you mean 'tokyo'\?"):
        with keras_psp.task("toky"):
            one(x)
    with pytest.raises(ValueError, match="take their task from a scope"):
        one(x)


def test_text_of_several_tasks_is_generated_in_one_batch():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=31,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    model = keras_hub.models.GPT2CausalLM(backbone)
    names = ["legal", "medical"]
    adapters = keras_psp.convert(model, names, context=None, rank=2, shared="copy")
    for i, weight in enumerate(adapters.trainable_weights):
        draw = keras.random.normal(weight.shape, stddev=0.3, seed=i)
        weight.assign(weight + draw)
    adapters.compile(sampler="greedy")
    prompts = {
        "token_ids": np.array([[5, 6, 7, 0, 0, 0, 0, 0], [8, 9, 1, 0, 0, 0, 0, 0]]),
        "padding_mask": np.array([[1, 1, 1, 0, 0, 0, 0, 0]] * 2),
    }

    def generate(task):
        with keras_psp.task(task):
            found = adapters.generate(prompts, stop_token_ids=None)["token_ids"]
        return ops.convert_to_numpy(found)

    legal, medical = generate("legal"), generate("medical")
    assert (legal[:, 3:] != medical[:, 3:]).any()
    mixed = generate(names)
    np.testing.assert_array_equal(mixed[0], legal[0])
    np.testing.assert_array_equal(mixed[1], medical[1])
    np.testing.assert_array_equal(generate("legal"), legal)
    with pytest.raises(ValueError, match="Unknown task"):
        generate("poetic")
    with pytest.raises(ValueError, match="`task` must lie in"):
        generate(2)


def text_classifier(seed, classes=2, vocabulary=("good", "bad", "film")):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = keras_hub.models.BertTokenizer([*special, *vocabulary])
    backbone = bert(vocabulary_size=8, length=6)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, 6)
    model = keras_hub.models.BertTextClassifier(backbone, classes, preprocessor)
    return draw_weights(model, seed)


TEXT = np.array(["good film", "bad film", "film", "bad"])


# Keras' word for a model that compiles itself.
@pytest.mark.filterwarnings("ignore:.compile... was not called:UserWarning")
@pytest.mark.once
def test_tokenizers_keep_their_vocabulary(tmp_path):
    model = text_classifier(0)
    expected = model.predict(TEXT, verbose=0)
    one = keras_psp.convert(model, ["paris", "tokyo"], shared="copy")
    one.save(tmp_path / "one.keras")
    for each in (one, keras.saving.load_model(tmp_path / "one.keras")):
        with keras_psp.task("tokyo"):
            found = each.predict(TEXT, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        plain = keras_psp.extract(each, "paris")
        found = plain.predict(TEXT, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # One has been used, and so is built further. The other has other classes.
    both = keras_psp.superpose([model, text_classifier(1, classes=3)], bits=8)
    found = both.predict({"inputs": TEXT, "task": np.zeros(4, "int32")}, verbose=0)
    np.testing.assert_allclose(found[:, :2], expected, atol=0.05)
    other = text_classifier(1, vocabulary=("bad", "good", "film"))
    with pytest.raises(ValueError, match="one architecture"):
        keras_psp.superpose([model, other])


def test_text_is_read_wherever_data_are():
    models = [text_classifier(0), text_classifier(1)]
    arrays = models[0].preprocess_samples(TEXT)
    by_text, by_arrays = (
        keras_psp.superpose(models, data=[x, x], budget=2.0) for x in (TEXT, arrays)
    )
    for a, b in zip(by_text.weights, by_arrays.weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (a, b)))
    tasks, _ = keras_psp.infer_task(by_text, list(TEXT), from_logits=True)
    expected, _ = keras_psp.infer_task(by_text, arrays, from_logits=True)
    np.testing.assert_array_equal(tasks, expected)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    y = np.arange(4) % 2
    for model in (*models, by_text):
        model.compile("sgd", loss)
    for text in (TEXT, list(TEXT)):
        found = keras_psp.evaluate(by_text, {1: (text, y)})
        given = {"inputs": TEXT, "task": np.ones(4, "int32")}
        expected = by_text.evaluate(given, y, verbose=0, return_dict=True)
        np.testing.assert_allclose(found.rows[0]["loss"], expected["loss"], rtol=1e-6)
    three = keras_psp.surgery.add_models(by_text, [models[0]], data=[TEXT])
    assert three.num_tasks == 3


@pytest.mark.once
def test_text_ends_a_task():
    model = text_classifier(0)
    one = keras_psp.convert(model, ["paris", "tokyo"], shared="freeze")
    data = {"inputs": TEXT, "task": np.array(["paris", "tokyo"] * 2)}, np.arange(4) % 2
    ewc = keras_psp.consolidation.EWC("sgd")
    one.compile(ewc, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    one.fit(*data, shuffle=False, verbose=0)
    ewc.end_task(one, data)
    assert all(np.array(ops.convert_to_numpy(v)).any() for v in ewc.importances[-2:])


@UNUSED
def test_a_layer_that_is_read_without_a_call_stays_shared():
    model, x = odd_block()
    draw_weights(model)
    expected = model.predict(x, verbose=0)
    match = r"counterpart: 'read' \(Dense\)\. All tasks share .* are not trained"
    with pytest.warns(UserWarning, match=match):
        one = keras_psp.convert(model, NUM_TASKS, None, shared="copy", rank=2)
    train(one, x, 1, expected)
    own = [ask(one, x, k) for k in range(NUM_TASKS)]
    np.testing.assert_allclose(own[0], expected, atol=1e-6)
    np.testing.assert_allclose(own[2], expected, atol=1e-6)
    assert np.abs(own[1] - expected).max() > 1e-3
    mixed = ask(one, x, TASKS)
    for k, y in enumerate(own):
        np.testing.assert_allclose(mixed[TASKS == k], y[TASKS == k], atol=1e-5)


def test_adapters_leave_the_base_and_one_another_alone():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model = draw_weights(
        keras.Sequential([keras.Input((4,), name="x"), layers.Dense(5), OwnDense(2)])
    )
    expected = model.predict(x, verbose=0)
    one = keras_psp.convert(model, NUM_TASKS, context=None, rank=8)
    assert one.layers[-2].low_rank.rank == 4  # No more than the layer has.
    train(one, x, 1, expected)
    np.testing.assert_allclose(ask(one, x, 0), expected, atol=1e-6)
    assert np.abs(ask(one, x, 1) - expected).max() > 1e-3


def test_the_warning_says_how_much_tasks_share():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), OwnDense(4)])
    with pytest.warns(UserWarning, match=r"\(OwnDense\).*50.0% of the model's"):
        keras_psp.convert(model, NUM_TASKS)
    frozen = keras_psp.convert(model, NUM_TASKS, shared="freeze")
    assert not frozen.layers[-1].trainable_weights


@pytest.mark.once
def test_bad_input():
    model, x = own_model()
    with pytest.raises(ValueError, match="`rank` must be given"):
        keras_psp.convert(model, 2, context=None)
    with pytest.raises(ValueError, match="Unknown shared.*'keep'"):
        keras_psp.convert(model, 2, shared="keep")
    with pytest.raises(ValueError, match="name of its own"):
        keras_psp.convert(model, ["a", "a"])
    with pytest.raises(TypeError, match="must be strings"):
        keras_psp.convert(model, ["a", 1])
    with pytest.raises(ValueError, match="must not take a task already"):
        keras_psp.convert(keras_psp.convert(model, 2), 2)
    with pytest.raises(ValueError, match="must be built"):
        keras_psp.convert(OwnModel(), 2)

    class Unlike(OwnModel):
        def get_config(self):
            return {"units": 3}

    unlike = Unlike()
    unlike(x)
    with pytest.raises(ValueError, match="from_config|must be like it"):
        keras_psp.convert(unlike, 2)
    named = keras_psp.convert(model, ["a", "b"])
    assert named.add_tasks(["c"]).task_names == ("a", "b", "c")
    assert named.remove_tasks(n=2).task_names == ("a",)
    with pytest.raises(ValueError, match="Either all tasks"):
        named.add_tasks(1)
    with pytest.raises(ValueError, match="`task_names` must hold 1"):
        named.task_names = ["a", "b"]
    with pytest.raises(ValueError, match="have no names"):
        keras_psp.extract(keras_psp.convert(model, 2), "a")


@pytest.mark.parametrize("make", [own_head, once(odd_block)])
@pytest.mark.filterwarnings("ignore:.*quantize", "ignore:.*no superposed")
def test_copies_are_not_quantized(make):
    model, x = make()
    one = keras_psp.convert(model, NUM_TASKS, shared="copy")
    name = "inputs" if make is own_head else "x"
    data = {name: x, "task": TASKS}
    answers = one.predict(data, verbose=0)
    copied = [each for each in find_task_layers(one) if isinstance(each, TaskCopies)]
    with pytest.raises(ValueError, match=f"to 'int8'.*{copied[0].name}"):
        one.quantize("int8")
    np.testing.assert_array_equal(one.predict(data, verbose=0), answers)
    for each in (copied[0], *layers_within(copied[0])):
        with pytest.raises(NotImplementedError, match="cannot be quantized|does not"):
            each.quantize("int8")
    tables = [
        each.name
        for each in find_task_layers(one)
        if isinstance(each, keras_psp.layers.TaskEmbedding)
    ]
    # The first is read without its scale.
    names = ["read", *tables, *(each.name for each in copied)]
    one.quantize("int8", filters=lambda layer: layer.name not in names)
    np.testing.assert_allclose(one.predict(data, verbose=0), answers, atol=0.1)
    with pytest.raises(ValueError, match="to 'float8'"):
        keras_psp.convert(own_head()[0], NUM_TASKS).quantize("float8")


@pytest.mark.once
def test_models_and_layers_of_classes_made_here_are_pickled():
    model, x = OwnModel(), np.ones((3, 4), "float32")
    model(x)
    converted = keras_psp.convert(model, 2)
    again = pickle.loads(pickle.dumps(converted))
    with keras_psp.task(1):
        np.testing.assert_allclose(call(again, x), call(converted, x), atol=1e-6)
    inputs = keras.Input((4, 3), name="x")
    graph = keras.Model(inputs, layers.GRU(2)(inputs))
    (copies,) = find_task_layers(keras_psp.convert(graph, 2, shared="copy"))
    again = pickle.loads(pickle.dumps(copies))
    for a, b in zip(again.get_weights(), copies.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
