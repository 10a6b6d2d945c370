"""What cannot be done is an error in Keras' form, and changes no given model."""

import keras
import numpy as np
import pytest
import small_models
from small_models import draw_inputs
from small_models import draw_weights

import keras_psp
from keras_psp import contexts
from keras_psp.surgery import add_models
from keras_psp.surgery import remove_models

X = np.ones((3, 5), "float32")


class Given:
    """The models that every call is given: made once, for no call may change them."""

    def __init__(self):
        self.models = [draw_weights(small_models.sequential(), k) for k in range(4)]
        self.one = keras_psp.superpose(self.models[:3], "hadamard", base=self.models[3])
        self.wide = draw_weights(
            keras.Sequential([keras.Input((5,), name="x"), keras.layers.Dense(2)])
        )
        self.nan = draw_weights(small_models.sequential())
        self.nan.set_weights([w * np.nan for w in self.nan.get_weights()])
        self.lora = small_models.sequential()
        self.lora.get_layer("last").enable_lora(2)
        self.quantized = small_models.sequential()
        self.quantized.get_layer("last").quantize("int8")
        self.before = self.state()

    def state(self):
        every = [*self.models, self.one, self.wide]
        answers = [model.predict(X, verbose=0) for model in (*self.models, self.wide)]
        for task in range(self.one.num_tasks):
            index = np.full(len(X), task, "int32")
            answers.append(self.one.predict({"x": X, "task": index}, verbose=0))
        flags = [[v.trainable for v in model.weights] for model in every]
        return answers, [model.get_weights() for model in every], flags


@pytest.fixture(scope="module")
def given():
    return Given()


def fails_inside(layer):
    raise ValueError("`layers` cannot say. Received: a layer")


CALLS = {
    "convert-model-none": lambda g: keras_psp.convert(None, 2),
    "convert-layer": lambda g: keras_psp.convert(keras.layers.Dense(2), 2),
    "convert-task-model": lambda g: keras_psp.convert(g.one, 2),
    "convert-lora": lambda g: keras_psp.convert(g.lora, 2),
    "convert-0": lambda g: keras_psp.convert(g.models[0], 0),
    "convert-float": lambda g: keras_psp.convert(g.models[0], 2.0),
    "convert-true": lambda g: keras_psp.convert(g.models[0], True),
    "convert-string": lambda g: keras_psp.convert(g.models[0], "2"),
    "convert-family": lambda g: keras_psp.convert(g.models[0], 2, "binaries"),
    "convert-context-none": lambda g: keras_psp.convert(g.models[0], 2, None),
    "convert-context-3": lambda g: keras_psp.convert(
        g.models[0], 2, contexts.Binary(3)
    ),
    "convert-too-many": lambda g: keras_psp.convert(g.models[0], 99, "hadamard"),
    "convert-over": lambda g: keras_psp.convert(g.models[0], 2, context_over="rows"),
    "convert-name": lambda g: keras_psp.convert(g.models[0], 2, layers=["third"]),
    "convert-names": lambda g: keras_psp.convert(g.models[0], 2, layers=["a", 3]),
    "convert-no-names": lambda g: keras_psp.convert(g.models[0], 2, layers=[]),
    "convert-regex": lambda g: keras_psp.convert(g.models[0], 2, layers="(first"),
    "convert-layers-3": lambda g: keras_psp.convert(g.models[0], 2, layers=3),
    "convert-fails": lambda g: keras_psp.convert(g.models[0], 2, layers=fails_inside),
    "superpose-nan": lambda g: keras_psp.superpose([g.models[0], g.nan]),
    "superpose-none": lambda g: keras_psp.superpose(None),
    "superpose-one": lambda g: keras_psp.superpose(g.models[:1]),
    "superpose-model": lambda g: keras_psp.superpose(g.models[0]),
    "superpose-string": lambda g: keras_psp.superpose([g.models[0], "model"]),
    "superpose-other": lambda g: keras_psp.superpose([g.models[0], g.wide]),
    "superpose-base": lambda g: keras_psp.superpose(g.models, base=g.wide),
    "superpose-base-string": lambda g: keras_psp.superpose(g.models, base="base"),
    "superpose-family": lambda g: keras_psp.superpose(g.models, "binaries"),
    "superpose-context": lambda g: keras_psp.superpose(g.models, contexts.Binary(3)),
    "superpose-over": lambda g: keras_psp.superpose(g.models, context_over=None),
    "superpose-ridge": lambda g: keras_psp.superpose(g.models, data=[X] * 4, ridge=-1),
    "superpose-ridge-nan": lambda g: keras_psp.superpose(g.models, ridge=float("nan")),
    "superpose-budget-text": lambda g: keras_psp.superpose(g.models, budget="much"),
    "superpose-budget-small": lambda g: keras_psp.superpose(g.models, budget=1e-3),
    "superpose-budget-nan": lambda g: keras_psp.superpose(g.models, budget=np.nan),
    "superpose-budget-ridge": lambda g: keras_psp.superpose(
        g.models, budget=1.0, ridge=0
    ),
    "superpose-data-3": lambda g: keras_psp.superpose(g.models, data=3),
    "superpose-data-few": lambda g: keras_psp.superpose(g.models, data=[X] * 3),
    "superpose-data-dict": lambda g: keras_psp.superpose(g.models, data={"x": X}),
    "superpose-data-wide": lambda g: keras_psp.superpose(g.models, data=[X[:, :4]] * 4),
    "superpose-data-name": lambda g: keras_psp.superpose(g.models, data=[{"y": X}] * 4),
    "superpose-data-empty": lambda g: keras_psp.superpose(g.models, data=[X[:0]] * 4),
    "superpose-data-nan": lambda g: keras_psp.superpose(
        g.models, data=[X * np.nan] * 4
    ),
    "superpose-data-words": lambda g: keras_psp.superpose(g.models, data=["words"] * 4),
    "superpose-not-shown": lambda g: keras_psp.superpose(
        g.models, "identity", data=[X] * 4, ridge=0
    ),
    "extract-model": lambda g: keras_psp.extract(g.models[0], 0),
    "extract-3": lambda g: keras_psp.extract(g.one, 3),
    "extract-negative": lambda g: keras_psp.extract(g.one, -1),
    "extract-float": lambda g: keras_psp.extract(g.one, 0.0),
    "extract-true": lambda g: keras_psp.extract(g.one, True),
    "extract-none": lambda g: keras_psp.extract(g.one, None),
    "add-to-model": lambda g: add_models(g.models[0], g.models),
    "add-none": lambda g: add_models(g.one, None),
    "add-nothing": lambda g: add_models(g.one, []),
    "add-model": lambda g: add_models(g.one, g.models[3]),
    "add-string": lambda g: add_models(g.one, ["model"]),
    "add-other": lambda g: add_models(g.one, [g.models[3], g.wide]),
    "add-quantized": lambda g: add_models(g.one, [g.quantized]),
    "add-nan": lambda g: add_models(g.one, [g.nan]),
    "add-too-many": lambda g: add_models(g.one, [g.models[3]] * 9),
    "add-data-few": lambda g: add_models(g.one, g.models[:3], data=[X]),
    "add-data-array": lambda g: add_models(g.one, [g.models[3]], data=X),
    "add-data-wide": lambda g: add_models(g.one, [g.models[3]], data=[X[:, :4]]),
    "add-data-nan": lambda g: add_models(g.one, [g.models[3]], data=[X * np.nan]),
    "add-data-none": lambda g: add_models(g.one, [g.models[3]], data=[None]),
    "add-ridge": lambda g: add_models(g.one, [g.models[3]], data=[X], ridge=-1.0),
    "add-not-shown": lambda g: add_models(
        g.one, [g.models[3]], data=[0 * X], ridge="a"
    ),
    "remove-from-model": lambda g: remove_models(g.models[0], g.models[1:2]),
    "remove-nothing": lambda g: remove_models(g.one, []),
    "remove-all": lambda g: remove_models(g.one, g.models[:3]),
    "remove-first": lambda g: remove_models(g.one, g.models[:1]),
    "remove-other": lambda g: remove_models(g.one, [g.wide]),
    "remove-string": lambda g: remove_models(g.one, ["model"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused(given, name):
    with pytest.raises(
        (TypeError, ValueError), match="(?s)[.:] .*[Rr]eceived: |There is"
    ):
        CALLS[name](given)


def test_nothing_was_changed_by_all_that_was_refused(given):
    for name, call in CALLS.items():
        with pytest.raises((TypeError, ValueError)):
            call(given)
        assert given.one.num_tasks == 3, name
    for after, before in zip(given.state(), given.before, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["add_up", "fit"])
def test_what_fails_half_way_is_undone(monkeypatch, where, error):
    from keras_psp.surgery._kernel import Kernel

    models = [draw_weights(small_models.convolutional(), k) for k in range(4)]
    one = keras_psp.superpose(models[:3], base=models[0]).remove_task(1)
    before = {w.path: np.array(w) for w in one.weights}
    done = getattr(Kernel, where)
    calls = []

    def fail(self, *args, **kwargs):
        done(self, *args, **kwargs)
        calls.append(self)
        if len(calls) == 2:
            raise error("no memory left")

    monkeypatch.setattr(Kernel, where, fail)
    with pytest.raises(error, match="no memory left"):
        add_models(one, models[2:], data=[draw_inputs(models[0])["image"]] * 2)
    assert len(calls) == 2 and one.num_tasks == 3 and one.removed_tasks == (1,)
    assert not one.fitted_to_data
    after = {w.path: np.array(w) for w in one.weights}
    assert after.keys() == before.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
