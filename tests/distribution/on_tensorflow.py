"""Run by test_distribution.py, in a process that has two CPUs of TensorFlow's.

As a program it writes a row for each case into a file.
"""

import functools
import sys

import cases
import pytest
import tensorflow as tf

CPUS = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], CPUS
)


MORE = [("mlp", "si"), ("encoder", "sgd")]


def two_replicas():
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


@pytest.fixture(scope="module", name="strategy")
def _strategy():
    return two_replicas()


def train_on_both(strategy, name, optimizer):
    """Trains in one replica and in two; returns what differs."""
    one = cases.build(name)
    weights = one.get_weights()
    cases.compile_model(one, optimizer)
    expected = cases.train(one, name), cases.state(one)
    with strategy.scope():
        model = cases.build(name)
        model.set_weights(weights)
        cases.compile_model(model, optimizer)
    found = cases.train(model, name), cases.state(model)
    return cases.compare(found, expected, cases.is_unknown_alone(model, name))


@pytest.mark.parametrize(("name", "optimizer"), [*cases.CASES, *MORE])
def test_equal_to_one_device(strategy, name, optimizer):
    with cases.precise(name):
        cases.check(train_on_both(strategy, name, optimizer))


def test_strategy_entered_after_building(strategy):
    model = cases.build("mlp")
    cases.compile_model(model, "sgd")
    x, y = cases.data("mlp", 16)
    with strategy.scope():
        for use in (model.fit, model.train_on_batch, model.evaluate):
            with pytest.raises(ValueError, match="built inside the scope"):
                use(x, y)


if __name__ == "__main__":
    train_on = functools.partial(train_on_both, two_replicas())
    cases.run({"MirroredStrategy, 2 replicas": train_on}, *sys.argv[1:])
