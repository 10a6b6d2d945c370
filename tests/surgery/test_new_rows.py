"""A task that is added to a converted or superposed model begins as the base."""

import keras
import numpy as np
import pytest
import small_models
from conftest import once
from small_models import answers
from small_models import call
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp


@pytest.mark.parametrize(
    "make",
    [
        small_models.convolutional,
        once(small_models.residual),
        once(small_models.attentive),
        small_models.of_all_ranks,
    ],
)
def test_a_task_added_to_a_converted_model_begins_as_the_model(make, tmp_path):
    model = draw_weights(make())
    inputs = draw_inputs(model)
    expected = call(model, *inputs.values())
    converted = keras_psp.convert(model, 2)
    for weight in converted.trainable_variables:  # Task 0 learns something of its own.
        if weight.shape[0] == 2 and "kernel" not in weight.name:
            value = np.array(keras.ops.convert_to_numpy(weight))
            value[0] += 1.0
            weight.assign(value)
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for grown in (converted, loaded):
        grown.add_tasks(2)
        y = answers(grown, inputs, 3)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [{}, once({"rank": 2, "bits": 32})])
def test_a_task_added_to_a_superposed_model_begins_with_the_rows_of_the_base(parts):
    base = draw_weights(small_models.convolutional(), 9)
    # Kernels that do not differ leak nothing.
    one = keras_psp.superpose([base, base], base=base, **parts)
    one.add_tasks(1)
    inputs = draw_inputs(base)
    expected = call(base, inputs["image"])
    y = answers(one, inputs, 2)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_file_without_rows_for_new_tasks_loads(tmp_path):
    """Such as one of an earlier release; the layer's initial values are used."""
    make = small_models.sequential
    converted = keras_psp.convert(draw_weights(make()), 2)
    bias = converted.get_layer("first").task_bias
    bias._new_rows.clear()
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.add_tasks(1)
    rows = keras.ops.convert_to_numpy(loaded.get_layer("first").task_bias.bias)
    assert rows[:2].any() and not rows[2].any()


def test_frozen_rows_stay_frozen_in_a_model_that_grows():
    model = small_models.convolutional()
    model.get_layer("conv").bias.trainable = False
    model.get_layer("norm").gamma.trainable = False
    converted = keras_psp.convert(model, 2)
    before = [v.path for v in converted.trainable_variables]
    converted.add_tasks(1)
    assert [v.path for v in converted.trainable_variables] == before
    converted.remove_tasks(n=1)
    assert [v.path for v in converted.trainable_variables] == before
