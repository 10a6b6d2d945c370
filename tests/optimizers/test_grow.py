import keras
import numpy as np
import pytest
from conftest import some_once
from layer_checks import to_numpy
from test_per_task import CROSSENTROPY
from test_per_task import X
from test_per_task import Y
from test_per_task import build
from test_per_task import fit

from keras_psp.consolidation import EWC
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.optimizers import PerTask
from keras_psp.optimizers._grow import grow_optimizer

MAKERS = {
    "adam": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    "per_task": lambda: PerTask(keras.optimizers.Adam(gradient_accumulation_steps=2)),
    "ewc": lambda: EWC(PerTask("adam"), strength=50.0),
    "multi": lambda: EWC(
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                PerTask("adam"), {"dense.*": keras.optimizers.SGD(momentum=0.9)}
            )
        )
    ),
    "si": lambda: SynapticIntelligence("adam"),
    "gram": lambda: Gram("adam", every=2),
    "diagonal": lambda: keras.optimizers.LossScaleOptimizer(
        PerTask(Gram("adam", largest=10))
    ),
}


def trained(name):
    model = build(MAKERS[name]())
    model.compile(model.optimizer, CROSSENTROPY, run_eagerly=True)
    fit(model, np.arange(12) % 3, batch_size=4)
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if hasattr(inner, "end_task"):
        inner.end_task(model, ({"image": X, "task": np.arange(12) % 3}, Y))
        fit(model, np.arange(12) % 3, batch_size=4)
    return model, inner


def replace(model, rows):
    """Gives a model other rows, and its optimizer what it knows of those it had."""
    old = list(model.trainable_variables)
    other = build("sgd", num_tasks=len(rows))
    for v, w in zip(other.trainable_variables, old, strict=True):
        values, before = to_numpy(v).copy(), to_numpy(w)
        if values.shape == before.shape:
            values = before
        for i, row in enumerate(rows if values.shape[0] == len(rows) else ()):
            values[i] = values[i] if row is None else before[row]
        v.assign(values)
    new = list(other.trainable_variables)
    new[:2] = old[:2]  # What tasks share is not replaced.
    grow_optimizer(model.optimizer, old, new, rows)
    return new


@pytest.mark.parametrize(
    "name", some_once(MAKERS, every=("per_task", "ewc", "gram", "multi"))
)
def test_there_and_back_is_as_if_nothing_had_been(name):
    model, inner = trained(name)
    before = [to_numpy(v) for v in model.optimizer.variables]
    penalty = getattr(inner, "penalty", lambda: 0.0)
    pulled = float(to_numpy(penalty()))
    old = list(model.trainable_variables)
    new = replace(model, [0, 1, 2, None])
    assert int(model.optimizer.iterations) > 0
    np.testing.assert_allclose(float(to_numpy(penalty())), pulled, rtol=1e-3)
    fresh = build(MAKERS[name](), num_tasks=4).optimizer
    fresh.build(new)
    shapes = [tuple(v.shape) for v in model.optimizer.variables]
    assert shapes == [tuple(v.shape) for v in fresh.variables]
    grow_optimizer(model.optimizer, new, old, [0, 1, 2])
    for variable, values in zip(model.optimizer.variables, before, strict=True):
        if "variable" not in variable.path:  # Eigenvectors are not unique.
            np.testing.assert_allclose(to_numpy(variable), values, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(float(to_numpy(penalty())), pulled, rtol=1e-3)


def test_any_task_can_be_taken_out():
    model, gram = trained("gram")
    old, kernel = [to_numpy(v) for v in gram.optimizer.variables], -2
    matrix = gram.factors[kernel][0].get().reshape(3, 5, 3, 5)
    replace(model, [0, 2])
    found = gram.factors[kernel][0].get().reshape(2, 5, 2, 5)
    kept = np.ix_([0, 2], range(5), [0, 2], range(5))
    np.testing.assert_allclose(found, matrix[kept], atol=1e-5)
    for variable, values in zip(gram.optimizer.variables, old, strict=True):
        if values.shape[:1] == (3,):
            values = values[[0, 2]]
        np.testing.assert_array_equal(to_numpy(variable), values)


def test_what_does_not_fit_changes_nothing():
    model, _ = trained("ewc")
    old = list(model.trainable_variables)
    before = [to_numpy(v) for v in model.optimizer.variables]
    for new, rows in ((old[:-1], [0]), ([*old[:-1], old[0]], [0]), (old[::-1], [0])):
        if [id(v) for v in new] == [id(v) for v in old[::-1]]:
            new = [*old[:-1], keras.Variable(np.zeros((4, 5)))]
        with pytest.raises(ValueError, match="must replace an old one"):
            grow_optimizer(model.optimizer, old, new, rows)
    with pytest.raises(ValueError, match="was built for other variables"):
        grow_optimizer(model.optimizer, old[1:], old[1:], [0, 1, 2])
    for variable, values in zip(model.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), values)
    fit(model, 0)
