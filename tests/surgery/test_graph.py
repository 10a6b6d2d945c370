import keras
import numpy as np
import pytest
from conftest import once
from keras import layers
from small_models import draw_weights

import keras_psp
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import inputs_of_layers
from keras_psp.layers._superposed_attention import projections


@pytest.mark.parametrize(
    "options", [once({}), {"dropout": 0.1}, once({"use_gate": True})]
)
def test_what_the_projections_of_attention_are_called_with(options):
    """By their outputs: those of the last one are the attention's."""
    x = keras.Input((None,), dtype="int32", name="x")
    y = layers.Embedding(4, 6, mask_zero=True)(x)
    attention = layers.MultiHeadAttention(2, 3, name="attention", **options)
    y = attention(query=y, key=y, value=layers.ReLU()(y), use_causal_mask=True)
    plain = draw_weights(keras.Model(x, y))
    tokens = np.array([[1, 2, 0], [3, 0, 0], [2, 1, 3]], "int32")
    expected = plain.predict(tokens, verbose=0)
    with pytest.warns(UserWarning, match="'embedding"):
        converted = keras_psp.convert(plain, 2)
    for model, given in (
        (plain, {"x": tokens}),
        (converted, {"x": tokens, "task": np.array([1, 0, 1], "int32")}),
    ):
        graph = Graph(model, takes_task=True)
        inputs, called = inputs_of_layers(graph)
        every = projections(model.get_layer("attention"))
        taps = keras.Model(inputs, [called[id(part)][0] for part in every])
        heard = taps.predict(given, verbose=0)
        np.testing.assert_allclose(heard[2], np.maximum(heard[1], 0), atol=1e-6)
        output = plain.get_layer("attention").output_dense(heard[-1])
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(output), expected, rtol=1e-4, atol=1e-5
        )
        assert not any("call" in vars(part) for part in every)
