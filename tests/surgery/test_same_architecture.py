"""Models are compared by what they compute: constants, functions, axes, inputs."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops
from small_models import answers
from small_models import draw_weights

import keras_psp
from keras_psp._reading.describe import describe_layer
from keras_psp._reading.graph import Graph
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp._reading.same_value import same_value


def is_same(one, other):
    """Whether two models pass as of one architecture; another error is a failure."""
    try:
        check_same_architecture([Graph(one), Graph(other)])
    except ValueError as error:
        assert "must be of one architecture" in str(error)
        return False
    return True


def around(layer, shape=(3, 4)):
    """A model that calls a layer, or a function, between two others."""
    x = keras.Input(shape, name="x")
    y = layers.Dense(shape[-1])(x)
    y = layer(y)
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))


def join(axis, kind=layers.Concatenate):
    return lambda y: kind(axis=axis)([y, 2.0 * y])


# Pairs of what stands between, and whether they compute the same.
BETWEEN = {
    "concatenate-differs": (join(1), join(-1), False),
    "concatenate-same": (join(2), join(-1), True),
    "softmax-same": (layers.Softmax(), layers.Softmax(axis=2), True),
    "softmax-differs": (layers.Softmax(axis=1), layers.Softmax(), False),
    "softmax-axes": (layers.Softmax(axis=(1, 2)), layers.Softmax(axis=(-1, -2)), True),
    "dot-same": (
        lambda y: layers.Dot(axes=-1)([y, y]),
        lambda y: layers.Dot(axes=(2, 2))([y, y]),
        True,
    ),
    "dot-differs": (
        lambda y: layers.Dot(axes=1)([y, y]),
        lambda y: layers.Dot(axes=2)([y, y]),
        False,
    ),
    "unit-same": (layers.UnitNormalization(), layers.UnitNormalization(axis=2), True),
    "unit-differs": (layers.UnitNormalization(1), layers.UnitNormalization(), False),
    "layer-norm-same": (
        layers.LayerNormalization(axis=-1),
        layers.LayerNormalization(axis=[2]),
        True,
    ),
    "permute": (layers.Permute((1, 2)), layers.Permute((2, 1)), False),
    "reshape-same": (layers.Reshape((-1, 6)), layers.Reshape((2, 6)), True),
    "reshape-differs": (layers.Reshape((-1, 6)), layers.Reshape((6, 2)), False),
    "flatten": (layers.Flatten(), layers.Reshape((12,)), False),
    "einsum-same": (
        layers.EinsumDense("abc,cd->abd", (3, 5), bias_axes="d"),
        layers.EinsumDense("btx,xy->bty", (3, 5), bias_axes="y"),
        True,
    ),
    "einsum-differs": (
        layers.EinsumDense("abc,cb->ab", (3,)),
        layers.EinsumDense("abc,bc->ab", (3,)),
        False,
    ),
    "operation-same": (
        lambda y: ops.softmax(y, axis=-1),
        lambda y: ops.softmax(y, axis=2),
        True,
    ),
    "operation-differs": (
        lambda y: ops.softmax(y, axis=-1),
        lambda y: ops.softmax(y, axis=1),
        False,
    ),
    "expand-dims-same": (
        lambda y: ops.expand_dims(y, -1),
        lambda y: ops.expand_dims(y, 3),
        True,
    ),
    "expand-dims-differs": (
        lambda y: ops.expand_dims(y, -1),
        lambda y: ops.expand_dims(y, 2),
        False,
    ),
    "mean-same": (lambda y: ops.mean(y, 1), lambda y: ops.mean(y, -2), True),
    "stack-differs": (
        lambda y: ops.stack([y, y], axis=-1),
        lambda y: ops.stack([y, y], axis=2),
        False,
    ),
    "clip": (lambda y: ops.clip(y, 0, 1), lambda y: ops.clip(y, 0, 2), False),
    "flip": (lambda y: y[:, ::-1], lambda y: y[:, ::1], False),
    "dtype": (
        layers.Activation("tanh", dtype="mixed_bfloat16"),
        layers.Activation("tanh"),
        False,
    ),
    "leaky-same": (layers.LeakyReLU(0.1), layers.LeakyReLU(0.1, name="own"), True),
    "leaky-differs": (layers.LeakyReLU(0.1), layers.LeakyReLU(0.2), False),
    "inside-differs": (
        layers.TimeDistributed(layers.LeakyReLU(0.1)),
        layers.TimeDistributed(layers.LeakyReLU(0.2)),
        False,
    ),
    "training": (
        lambda y: layers.Dropout(0.5)(y, training=True),
        layers.Dropout(0.5),
        False,
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_two_layers(name):
    one, other, same = BETWEEN[name]
    assert is_same(around(one), around(other)) == same


def test_a_batch_normalization_counts_its_axis_from_either_end():
    make = functools.partial(around, shape=(4, 4))
    assert is_same(
        make(layers.BatchNormalization(axis=-1)),
        make(layers.BatchNormalization(axis=2)),
    )
    assert not is_same(
        make(layers.BatchNormalization(axis=1)), make(layers.BatchNormalization(axis=2))
    )


class Scale:
    """An object whose method is a layer's function."""

    def __init__(self, by):
        self.by = by

    def apply(self, x):
        return x * self.by


def scaled_by(c):
    def scale(x):
        return x * c

    return scale


def wrapped(c):
    @functools.wraps(keras.activations.relu)
    def relu(x):
        return c * keras.activations.relu(x)

    return relu


@dataclasses.dataclass
class Table:
    """Its `==` raises an error, as it compares arrays."""

    by: np.ndarray

    def apply(self, x):
        return ops.multiply(x, self.by)


def long_array(c):
    values = np.ones((3, 4000), "float32")
    values[1, 2000] = c
    return values


def with_default(c):
    return lambda x, by=c: x * by


def of_other_globals(c):
    space = {"C": c}
    exec("def scale(x): return x * C", space)  # noqa: S102
    return space["scale"]


class OwnScale(layers.Layer):
    """What it multiplies with is in no config."""

    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, inputs):
        return inputs * self.by


def steps(c):
    return lambda y: layers.SimpleRNN(4)(y, initial_state=c * ops.ones((1, 4)))


def attended(c):
    def call(y):
        mask = np.ones((1, 3, 3), bool)
        mask[0, 1, 2] = c > 1
        return layers.MultiHeadAttention(2, 3)(y, y, attention_mask=mask)

    return call


def masked(c):
    mask = np.array([[[True, True, c > 1, True]]])
    return lambda y: 1.0 * layers.Softmax()(y, mask=mask)


OF_A_NUMBER = {
    "closure": lambda c: layers.Lambda(scaled_by(c)),
    "default": lambda c: layers.Lambda(with_default(c)),
    "globals": lambda c: layers.Lambda(of_other_globals(c)),
    "partial": lambda c: layers.Lambda(functools.partial(ops.multiply, x2=c)),
    "method": lambda c: layers.Lambda(Scale(c).apply),
    "keras_method": lambda c: layers.Lambda(layers.Rescaling(c).call),
    "dataclass": lambda c: layers.Lambda(Table(np.full(4, c, "float32")).apply),
    "wrapped": lambda c: layers.Dense(4, activation=wrapped(c)),
    "arguments": lambda c: layers.Lambda(lambda x, by: x * by, arguments={"by": c}),
    "activation": lambda c: layers.Dense(4, activation=scaled_by(c)),
    "inside": lambda c: layers.TimeDistributed(
        layers.Dense(4, activation=scaled_by(c))
    ),
    "constant": lambda c: lambda y: y * np.float32(c),
    "long": lambda c: lambda y: layers.Dense(4000)(y) * long_array(c),
    "tensor": lambda c: lambda y: y + ops.convert_to_tensor([1.0, 1.0, c, 1.0]),
    "mask": masked,
    "attention_mask": attended,
    "initial_state": steps,
    "own_layer": OwnScale,
}


@pytest.mark.parametrize("name", OF_A_NUMBER)
def test_constants_and_functions_are_compared_by_what_they_hold(name):
    make = OF_A_NUMBER[name]
    shape = (3, 4)
    assert is_same(around(make(2.0), shape), around(make(2.0), shape))
    assert not is_same(around(make(1.0), shape), around(make(2.0), shape))


def test_values():
    assert same_value(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    assert same_value([1, (2, "a")], [1, (2, "a")])
    assert not same_value({"a": 1}, {"a": 1, "b": None})
    assert not same_value(np.zeros(2, "int32"), np.zeros(2, "float32"))
    assert not same_value(np.zeros(2), [0.0, 0.0])
    assert not same_value(lambda x: x + 1, lambda x: x + 2)
    ring, other = [1], [1]
    ring.append(ring)
    other.append(other)
    assert same_value(ring, other)
    assert same_value(Scale(1), Scale(1)) and not same_value(Scale(1), Scale(2))


def test_initializers_do_not_matter():
    def ones(shape, dtype=None):
        return ops.ones(shape, dtype)

    one, other = (
        layers.Dense(4, kernel_initializer=each) for each in ("he_normal", ones)
    )
    assert is_same(around(one), around(other))


def test_inputs_are_matched_by_name():
    def make(order, wanted):
        inputs = {name: keras.Input((4,), name=name) for name in order}
        first, second = layers.Dense(3), layers.Dense(3)
        return keras.Model(inputs, first(inputs[wanted[0]]) - second(inputs[wanted[1]]))

    assert is_same(make("ab", "ab"), make("ba", "ab"))
    assert not is_same(make("ab", "ab"), make("ba", "ba"))
    assert not is_same(make("ab", "ab"), make("ac", "ac"))


def test_vocabularies_are_compared():
    def make(words):
        lookup = layers.IntegerLookup()
        lookup.adapt(words)
        x = keras.Input((2,), dtype="int32", name="x")
        y = layers.Embedding(4, 3, embeddings_initializer="ones")(lookup(x))
        return keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))

    assert is_same(make([3, 5, 7]), make([3, 5, 7]))
    assert not is_same(make([3, 5, 7]), make([3, 5, 8]))


def test_several_outputs_are_superposed_and_extracted():
    def make(seed):
        x = keras.Input((4,), name="x")
        y = layers.Dense(4, name="trunk")(x)
        outputs = {
            "price": layers.Dense(1, name="one")(y),
            "more": [layers.Softmax(name="soft")(layers.Dense(2, name="two")(y)), y],
        }
        return draw_weights(keras.Model(x, outputs), seed)

    models = [make(seed) for seed in (1, 2)]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    # The first model is the base: nothing of it leaks into the second one.
    superposed = keras_psp.superpose(models, base=models[0])
    converted = keras_psp.convert(models[1], 2)
    expected = models[1].predict(x, verbose=0)
    for given in (
        answers(superposed, {"x": x}, 1),
        answers(converted, {"x": x}, 0),
        keras_psp.extract(superposed, 1).predict(x, verbose=0),
    ):
        assert sorted(given) == sorted(expected) == ["more", "price"]
        pairs = zip(*map(keras.tree.flatten, (given, expected)), strict=True)
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_functions_that_keras_cannot_find_again_are_kept():
    def make(seed):
        x = keras.Input((4,), name="x")
        y = layers.Dense(4, activation=scaled_by(3.0), name="scaled")(x)
        y = layers.Activation(lambda x: x + 1.0)(y)
        return draw_weights(keras.Model(x, layers.Dense(2)(y)), seed)

    model = make(1)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    expected = model.predict(x, verbose=0)
    converted = keras_psp.convert(model, 2)
    np.testing.assert_allclose(answers(converted, {"x": x}, 1), expected, atol=1e-5)
    plain = keras_psp.extract(converted, 1)
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-5)
    assert model.get_layer("scaled").activation(1.0) == 3.0


def test_a_layer_that_its_config_does_not_tell_is_refused():
    layer = OwnScale()
    layer.by = 2.0  # Its config still says 1.
    model = around(layer)
    with pytest.raises(ValueError, match="attribute `by` differs in the copy"):
        keras_psp.convert(model, 2)


class Holder(layers.Layer):
    """Holds a functional model, whose input gets another name each time."""

    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        x = keras.Input((3, 4))
        self.net = keras.Model(x, layers.Dense(4, activation, name="inner")(x))

    def call(self, x):
        return self.net(x)

    def get_config(self):
        return {**super().get_config(), "activation": self.net.layers[-1].activation}


class Untold(layers.Layer):
    """Has no config, like some of KerasHub's layers, but holds its arguments."""

    def __init__(self, activation, **kwargs):
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)

    def call(self, x):
        return self.activation(x)

    def get_config(self):
        raise NotImplementedError


Untold.__module__ = "keras_hub.layers"


@pytest.mark.once
@pytest.mark.parametrize("kind", [Holder, Untold])
def test_layers_of_blocks_are_compared_without_names_and_by_what_they_hold(kind):
    def describe(activation):
        return describe_layer(around(kind(activation)).layers[2])

    assert same_value(describe("relu"), describe("relu"))
    assert not same_value(describe("relu"), describe("gelu"))
