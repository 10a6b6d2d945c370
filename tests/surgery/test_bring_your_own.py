"""Layers of other libraries and of Keras' rarer kinds, in one small network each."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras import layers

import keras_psp


def with_operations():
    x = keras.Input((8,), name="x")
    y = layers.Dense(4)(x) * layers.Dense(4)(x)
    y = keras.ops.concatenate([y[:, :2], keras.ops.relu(y[:, 2:])], axis=-1)
    return keras.Model(x, layers.Dense(2)(y))


def with_masks():
    x = keras.Input((8,), name="x")
    y = layers.Embedding(5, 4, mask_zero=True)(keras.ops.cast(x > 0, "int32"))
    y = layers.Attention()([y, y])
    return keras.Model(x, layers.Dense(2)(layers.GRU(3)(y)))


def with_functions_of_jax():
    import jax

    def apply(params, inputs):
        return inputs @ params["w"]

    def start(rng, inputs):
        return {"w": jax.random.normal(rng, (8, 4))}

    x = keras.Input((8,), name="x")
    y = layers.JaxLayer(call_fn=apply, init_fn=start)(x)
    return keras.Model(x, layers.Dense(2)(y))


def with_mixed_precision():
    x = keras.Input((8,), name="x")
    y = layers.Dense(6, "relu", dtype="mixed_bfloat16")(x)
    return keras.Model(x, layers.Dense(2, dtype="float32")(y))


MAKERS = [with_operations, with_masks]
if BACKEND == "jax":
    MAKERS.append(with_functions_of_jax)


@pytest.mark.parametrize("make", MAKERS)
def test_models_are_converted_and_kept(make, rng):
    model = make()
    x = rng.normal(size=(6, 8)).astype("float32")
    expected = model.predict(x, verbose=0)
    converted = keras_psp.convert(model, 3, context=None, rank=2, shared="copy")
    given = {"x": x, "task": np.arange(6) % 3}
    np.testing.assert_allclose(converted.predict(given, verbose=0), expected, atol=1e-5)
    models = [keras_psp.extract(converted, task) for task in range(2)]
    for seed, each in enumerate(models):
        draw = np.random.default_rng(seed)
        for weight in each.trainable_weights:
            weight.assign(weight + 0.1 * draw.normal(size=weight.shape))
    one = keras_psp.superpose(models, base=model, bits=8)
    for task, each in enumerate(models):
        own = each.predict(x, verbose=0)
        found = one.predict({"x": x, "task": np.full(6, task)}, verbose=0)
        np.testing.assert_allclose(found, own, atol=0.05 * own.std())


@pytest.mark.skipif(BACKEND != "torch", reason="Keras wraps modules of torch on torch.")
def test_a_module_of_torch_stays_shared_and_is_named():
    import torch

    def make():
        module = torch.nn.Linear(8, 4)
        wrapped = layers.TorchModuleWrapper(
            module, name="of_torch", output_shape=(None, 4)
        )
        x = keras.Input((8,), name="x")
        return keras.Model(x, layers.Dense(2)(wrapped(x)))

    model = make()
    with pytest.warns(UserWarning, match="of_torch.*All tasks share"):
        one = keras_psp.convert(model, 2, shared="copy")
    x = np.ones((4, 8), "float32")
    found = one.predict({"x": x, "task": np.arange(4) % 2}, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    twins = [keras_psp.extract(one, task) for task in range(2)]
    superposed = keras_psp.superpose(twins, bits=8)
    found = superposed.predict({"x": x, "task": np.arange(4) % 2}, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=0.05)
    with pytest.raises(ValueError, match="whose 'of_torch' differ"):
        keras_psp.superpose([model, make()])


@pytest.mark.parametrize("options", [{"context": None, "rank": 2}, {}])
def test_layers_of_mixed_precision_are_trained(options):
    model = keras_psp.convert(with_mixed_precision(), 2, **options)
    model.compile(keras_psp.optimizers.PerTask(keras.optimizers.SGD(0.003)), "mse")
    x, y = np.ones((8, 8), "float32"), np.full((8, 2), 3.0)
    for task in (np.zeros(8, int), np.arange(8) % 2):  # Of one task, and of both.
        losses = model.fit({"x": x, "task": task}, y, epochs=5, verbose=0).history
        assert losses["loss"][-1] < losses["loss"][0]
    assert np.isfinite(model.predict({"x": x, "task": task}, verbose=0)).all()


class MovingMean(layers.Layer):
    """Takes a moving average of its inputs from them."""

    def build(self, shape):
        self.mean = self.add_weight(
            shape=(shape[-1],), initializer="zeros", trainable=False
        )

    def call(self, x, training=False):
        if training:
            mean = keras.ops.mean(x, axis=0)
            self.mean.assign(0.5 * (self.mean + mean))
        return x - self.mean


@pytest.mark.parametrize("shared", ["freeze", "copy"])
def test_what_training_changes_for_all_tasks_is_said(shared, recwarn):
    for kind in (MovingMean, layers.Normalization):
        x = keras.Input((8,), name="x")
        y = layers.Dropout(0.5)(kind(name="own")(x))
        keras_psp.convert(keras.Model(x, layers.Dense(2)(y)), 2, shared=shared)
    said = [str(each.message) for each in recwarn if "in training" in str(each.message)]
    assert len(said) == 1 and "'own' (MovingMean)" in said[0]
