"""Models that were fine-tuned with Keras' LoRA."""

import keras
import keras_hub
import numpy as np
import pytest
from conftest import once
from keras import layers
from keras import ops
from small_models import draw_weights

import keras_psp
from keras_psp.surgery import add_models

WORDS = np.array([[1, 2, 3, 4], [4, 3, 2, 1]])


class Pair(layers.Layer):
    """A block of a user's own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(6, "relu")
        self.second = layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d")

    def call(self, x):
        return self.second(self.first(x))


def make_model(seed, rank=2):
    """Every kind of layer that Keras has a LoRA for."""
    inputs = keras.Input((4,), dtype="int32", name="words")
    x = layers.Embedding(5, 6, name="embedding")(inputs)
    x = Pair(name="pair")(x)
    x = layers.Reshape((2, 2, 6))(x)
    x = layers.Conv2D(6, 2, padding="same", activation="relu", name="conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="last")(x))
    draw_weights(model, 0)
    if rank:
        pair = model.get_layer("pair")
        for layer in (*model.layers, pair.first, pair.second):
            if hasattr(layer, "enable_lora"):
                layer.enable_lora(rank)
                for weight in layer.trainable_weights:
                    rng = np.random.default_rng(seed)
                    weight.assign(rng.normal(size=weight.shape))
    return model


def answer(model, task=None):
    tasks = np.array([task, task])
    given = WORDS if task is None else {"words": WORDS, "task": tasks}
    return ops.convert_to_numpy(model(given))


@pytest.mark.parametrize("base", [once(False), True])
def test_the_kernels_are_taken_with_what_a_lora_adds(base):
    models = [make_model(seed) for seed in (1, 2, 3)]
    own = [answer(model) for model in models]
    one = keras_psp.superpose(
        models[:2], bits=8, base=make_model(0, rank=0) if base else None
    )
    add_models(one, models[2:])
    for task, expected in enumerate(own):
        spread = expected.std()
        np.testing.assert_allclose(answer(one, task), expected, atol=0.05 * spread)
        plain = keras_psp.extract(one, task)
        np.testing.assert_allclose(answer(plain), answer(one, task), atol=1e-4)
        assert not any("lora" in weight.path for weight in plain.weights)
        np.testing.assert_array_equal(answer(models[task]), expected)


@pytest.mark.once
def test_classifiers_of_keras_hub_with_a_lora():
    def make_classifier(seed, rank=2):
        keras.utils.set_random_seed(0)
        backbone = keras_hub.models.BertBackbone(
            20, 1, 2, 8, 16, dropout=0.0, max_sequence_length=5
        )
        model = keras_hub.models.BertTextClassifier(backbone, 3, dropout=0.0)
        if rank:
            backbone.enable_lora(rank)
            rng = np.random.default_rng(seed)
            for weight in backbone.trainable_weights:
                weight.assign(weight + rng.normal(size=weight.shape))
        return model

    models = [make_classifier(seed) for seed in (1, 2)]
    one = keras_psp.superpose(models, base=make_classifier(0, rank=0), rank=4, bits=8)
    x = {
        "token_ids": np.arange(15).reshape(3, 5) % 20,
        "padding_mask": np.ones((3, 5), "int32"),
        "segment_ids": np.zeros((3, 5), "int32"),
    }
    for task, model in enumerate(models):
        expected = model.predict(x, verbose=0)
        found = keras_psp.extract(one, task).predict(x, verbose=0)
        np.testing.assert_allclose(found, expected, atol=0.1 * expected.std())


def test_a_lora_on_quantized_kernels_is_refused():
    models = [make_model(seed, rank=0) for seed in (1, 2)]
    models[1].get_layer("last").quantize("int8")
    models[1].get_layer("last").enable_lora(2)
    with pytest.raises(ValueError, match="quantized.*'last'"):
        keras_psp.superpose(models)
