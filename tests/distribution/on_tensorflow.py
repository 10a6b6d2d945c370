"""Run by test_distribution.py, in a process that has two CPUs of TensorFlow's."""

import cases
import pytest
import tensorflow as tf

CPUS = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], CPUS
)


@pytest.fixture(scope="module")
def strategy():
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("mlp", "ewc"),
        ("mlp", "si"),
        ("mlp", "gram"),
        ("resnet18", "sgd"),
        ("encoder", "sgd"),
    ],
)
def test_equal_to_one_device(strategy, name, optimizer):
    one = cases.build(name)
    weights = one.get_weights()
    cases.compile_model(one, optimizer)
    expected = cases.train(one, name), cases.state(one)
    with strategy.scope():
        model = cases.build(name)
        model.set_weights(weights)
        cases.compile_model(model, optimizer)
    found = cases.train(model, name), cases.state(model)
    cases.assert_equal(found, expected)
    cases.assert_unknown_alone(model, name)


def test_strategy_entered_after_building(strategy):
    model = cases.build("mlp")
    cases.compile_model(model, "sgd")
    x, y = cases.data("mlp", 16)
    with strategy.scope():
        for use in (model.fit, model.train_on_batch, model.evaluate):
            with pytest.raises(ValueError, match="built inside the scope"):
                use(x, y)
