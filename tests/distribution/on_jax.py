"""Run by test_distribution.py, in a process that has eight devices.

As a program it writes a row for each case into a file.
"""

import functools
import math
import sys

import cases
import keras
import numpy as np
import pytest
from keras.distribution import DataParallel
from keras.distribution import DeviceMesh
from keras.distribution import ModelParallel

import keras_psp
from keras_psp._core.task_rows import is_task_rows
from keras_psp.distribution import layout_map


def model_parallel(model, *shape, **arguments):
    mesh = DeviceMesh(shape, ["batch", "model"])
    layouts = layout_map(model, mesh, **arguments)
    return ModelParallel(layout_map=layouts, batch_dim_name="batch")


def train_on(spread, name, optimizer):
    """Trains on one device and on eight; returns what differs."""
    one = cases.build(name)
    weights = one.get_weights()
    cases.compile_model(one, optimizer)
    expected = cases.train(one, name), cases.state(one)
    build = functools.partial(cases.build, name)
    if name == "encoder":  # It is converted already where it is laid out.
        build = functools.partial(keras.models.clone_model, one)
    if spread:
        distribution = model_parallel(one if name == "encoder" else build, 2, 4)
    else:
        distribution = DataParallel(DeviceMesh((8,), ["batch"]))
    with distribution.scope():
        model = build()
        model.set_weights(weights)
        cases.compile_model(model, optimizer)
        found = cases.train(model, name), cases.state(model)
        alone = cases.is_unknown_alone(model, name)
    banks = [v.value.sharding.spec for v in model.variables if is_task_rows(v)]
    assert banks and all((tuple(spec)[:1] == ("model",)) == spread for spec in banks)
    for variable, anchor in zip(
        model.trainable_variables, getattr(model.optimizer, "anchors", []), strict=False
    ):
        assert anchor.value.sharding == variable.value.sharding
    return cases.compare(found, expected, alone)


ENGINES = {
    "DataParallel, 8 devices": functools.partial(train_on, False),
    "ModelParallel, 2 x 4 devices": functools.partial(train_on, True),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "optimizer"), [*cases.CASES, ("encoder", "sgd")])
def test_equal_to_one_device(name, optimizer, engine):
    with cases.precise(name):
        cases.check(ENGINES[engine](name, optimizer))


@pytest.mark.parametrize("banks", ["tasks", "inputs"])
def test_each_device_holds_an_eighth(banks):

    def build():
        # So large that Keras compiles what makes the first factors.
        x = keras.Input((256,), name="x")
        task = keras.Input((), dtype="int32", name="task")
        new = keras_psp.layers.PSPDense(
            16, num_tasks=10_000, rank=4, context="identity", use_bias=False
        )
        return keras_psp.models.TaskModel({"x": x, "task": task}, new(x, task))

    with model_parallel(build, 1, 8, banks=banks).scope():
        model = build()
        model.compile(keras_psp.consolidation.EWC("adam"), "mse")
        x = {"x": np.ones((8, 256), "float32"), "task": np.arange(8) * 1249}
        assert np.isfinite(model.train_on_batch(x, np.ones((8, 16))))
    variables = [*model.variables, *model.optimizer.variables]
    held: dict = {}
    for variable in variables:
        for shard in variable.value.addressable_shards:
            size = math.prod(shard.data.shape)
            held[shard.device.id] = held.get(shard.device.id, 0) + size
    total = sum(math.prod(variable.shape) for variable in variables)
    assert total > 5 * 10_000 * 4 * (256 + 16)  # Moments, anchors and importances too.
    assert len(held) == 8
    for size in held.values():
        assert abs(size * 8 / total - 1) < 0.1


def test_a_given_model_is_laid_out_by_its_names():
    model = cases.build("mlp")
    layouts = layout_map(model, DeviceMesh((1, 8), ["batch", "model"]))
    with ModelParallel(layout_map=layouts, batch_dim_name="batch").scope():
        copy = keras.models.clone_model(model)
    spread = {v.path for v in copy.variables if any(v.value.sharding.spec)}
    assert spread == set(layouts)


def test_distribution_entered_after_building():
    model = cases.build("mlp")
    cases.compile_model(model, "sgd")
    x, y = cases.data("mlp", 16)
    before = model.get_weights()
    with DataParallel(DeviceMesh((8,), ["batch"])).scope():
        for use in (model.fit, model.train_on_batch, model.evaluate):
            with pytest.raises(ValueError, match="built inside the scope"):
                use(x, y)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


if __name__ == "__main__":
    cases.run(ENGINES, *sys.argv[1:])
