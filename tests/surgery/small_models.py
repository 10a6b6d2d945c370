"""Small Keras models of every shape that surgery meets."""

import keras
import numpy as np
from conftest import BACKEND
from keras import layers

CLASSES = 3
# TensorFlow on a CPU compiles each call of a convolution in groups. There the tests of
# the layers know them.
GROUPS = 1 if BACKEND == "tensorflow" else 2


def draw_weights(model, seed=0):
    """Gives a model weights of which none is like another."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype == "float32":
            low = 0.5 if "var" in weight.name else -0.4
            weight.assign(rng.uniform(low, low + 0.8, size=weight.shape))
    return model


def draw_inputs(model, number=6, seed=0):
    """Returns a dictionary of arrays, by the names of the inputs."""
    rng = np.random.default_rng(seed)
    return {
        tensor.name: rng.normal(size=(number, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    }


def answers(one, inputs, task):
    """Returns what a task of a superposed model answers."""
    number = len(next(iter(inputs.values())))
    return call(one, {**inputs, "task": np.full(number, task, "int32")})


def call(model, inputs):
    """What a model answers, which is not compiled for that: it is asked only once."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(inputs))


def sequential():
    return keras.Sequential(
        [
            keras.Input((5,), name="x"),
            layers.Dense(7, activation="tanh", name="first"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(CLASSES, use_bias=False, name="last"),
        ],
        name="sequential_net",
    )


def convolutional():
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, padding="same", strides=2, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(4, 3, groups=GROUPS, use_bias=False, name="groups")(x)
    x = layers.BatchNormalization(scale=False, name="norm_2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(CLASSES, name="head")(x), name="conv_net")


def shared():
    """A layer called twice, operations that are no layers, and two inputs."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = layers.Dense(4, activation="tanh", name="both")
    x = both(both(a)) + keras.ops.multiply(both(b), 2.0)
    head = layers.Dense(CLASSES, name="head")(x)
    return keras.Model({"a": a, "b": b}, head, name="shared_net")


def nested():
    inner = keras.Sequential(
        [keras.Input((6,), name="i"), layers.Dense(6, name="inner_dense")], name="inner"
    )
    x = keras.Input((4,), name="x")
    y = inner(inner(layers.Dense(6, name="outer_dense")(x)))
    plain = keras.Sequential([keras.Input((6,)), layers.ReLU()], name="no_weights")
    y = plain(y)
    return keras.Model(x, layers.Dense(CLASSES, name="head")(y), name="nested_net")


def residual():
    """Products over several dimensions, and layer normalization."""
    x = inputs = keras.Input((4, 6), name="x")
    y = layers.LayerNormalization(name="norm")(x)
    y = layers.EinsumDense("btd,dnh->btnh", (4, 2, 3), bias_axes="nh", name="split")(y)
    y = layers.EinsumDense("btnh,nhd->btd", (4, 6), activation="tanh", name="join")(y)
    x = layers.LayerNormalization(center=False, axis=2, name="norm_2")(x + y)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name="residual")


def attentive():
    """Attention, by others and within, with masks and a gate."""
    inputs = keras.Input((4, 6), name="x")
    others = layers.MultiHeadAttention(2, 3, name="attention")
    x = inputs + others(inputs, layers.ReLU(name="value")(inputs), use_causal_mask=True)
    x = layers.GroupQueryAttention(3, 2, 1, use_gate=True, name="groups")(x, x, x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name="attentive")


def of_all_ranks():
    """Convolutions of volumes, images and sequences, depthwise ones among them."""
    x = inputs = keras.Input((4, 4, 4, 2), name="x")
    x = layers.Conv3D(3, 2, padding="same", activation="tanh", name="volume")(x)
    x = layers.Reshape((8, 8, 3), name="image")(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="depthwise")(x)
    x = layers.Reshape((9, 6), name="sequence")(x)
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2, name="causal")(x)
    x = layers.DepthwiseConv1D(2, use_bias=False, name="depthwise_2")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name="all_ranks")


MODELS = (
    sequential,
    convolutional,
    shared,
    nested,
    residual,
    attentive,
    of_all_ranks,
)

# What is slow to compile, and built of what the others are built of.
SLOW = (attentive, of_all_ranks)
