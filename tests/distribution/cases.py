"""Models, and their training, that must be equal on one device and on several."""

import contextlib

import keras
import numpy as np
from keras import layers

import keras_psp

TASKS = 8
CLASSES = 4
SIZES = {"resnet18": (16, 16, 3), "encoder": (4, 8)}  # Others have six numbers.


def build(name):
    """Builds a model of `TASKS` tasks."""
    if name == "seeded":
        return _mlp(storage="seed")
    if name == "permuted":
        return _mlp("permutation")
    return {"mlp": _mlp, "resnet18": _resnet18, "encoder": _encoder}[name]()


def _mlp(family="binary", **options):
    def context():
        return keras_psp.contexts.get(family, TASKS, name="context", **options)

    x = keras.Input((6,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    new = keras_psp.layers
    parts = {"base": True, "rank": 2, "core": 3, "bias_per_task": True}
    y = new.PSPDense(16, context=context(), **parts, activation="relu")(x, task)
    y = new.TaskBatchNormalization(TASKS, synchronized=True)(y, task)
    y = new.PSPDense(16, context=context())(y, task)
    y = new.TaskDense(CLASSES, num_tasks=TASKS)(y, task)
    return keras_psp.models.TaskModel({"x": x, "task": task}, y)


def _resnet18():
    shape = SIZES["resnet18"]
    model = keras_psp.models.resnet18(shape, CLASSES, TASKS, width=0.0625)
    for layer in model.layers:
        if isinstance(layer, keras_psp.layers.TaskBatchNormalization):
            layer.synchronized = True
    return model


def _encoder():
    x = keras.Input(SIZES["encoder"], name="x")
    attended = layers.MultiHeadAttention(2, 4)(x, x)
    y = layers.LayerNormalization()(x + attended)
    y = layers.LayerNormalization()(y + layers.Dense(8)(layers.Dense(16, "gelu")(y)))
    y = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(y))
    return keras_psp.convert(keras.Model(x, y), num_tasks=TASKS)


@contextlib.contextmanager
def precise(name):
    """In it, ResNet18 is of float64: where few numbers are normalized, errors grow."""
    if name != "resnet18":
        yield
        return
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def data(name, number=48, seed=0):
    """Returns inputs, of few tasks in a batch, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, *SIZES.get(name, (6,)))).astype(keras.config.floatx())
    together = 8 if name == "resnet18" else 4
    tasks = np.arange(number, dtype="int32") // together % TASKS
    first = "image" if name == "resnet18" else "x"
    return {first: x, "task": tasks}, rng.integers(0, CLASSES, number)


def optimizer(name):
    """Returns an optimizer, or one that consolidates."""
    sgd = keras.optimizers.SGD(0.01, momentum=0.5)
    if name == "per_task":
        return keras_psp.optimizers.PerTask(sgd)
    if name == "ewc":
        return keras_psp.consolidation.EWC(sgd, strength=20.0, labels="data")
    if name == "si":
        return keras_psp.consolidation.SynapticIntelligence(sgd, strength=5.0)
    if name == "gram":
        return keras_psp.consolidation.Gram(sgd, every=2, strength=1.0)
    return sgd


def compile_model(model, optimizer_name):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(optimizer_name), loss)


def train(model, name, examples=10):
    """Trains a compiled model on two sets of data in turn, and returns the losses."""
    losses = []
    for seed in range(2):
        x, y = data(name, seed=seed)
        done = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        losses += done.history["loss"]
        if hasattr(model.optimizer, "end_task"):
            part = {key: value[:examples] for key, value in x.items()}
            model.optimizer.end_task(model, (part, y[:examples]))
    return losses


def state(model):
    """Returns all numbers of a model and of its optimizer.

    Of Gram, matrices in place of their eigenvectors, which rounding may turn.
    """
    variables = [*model.variables, *model.optimizer.variables]
    factors = [f for pair in getattr(model.optimizer, "factors", []) for f in pair]
    turned = {id(f.vectors) for f in factors}
    values = {f"matrix_{i}": f.get().astype("float32") for i, f in enumerate(factors)}
    return values | {
        variable.path: keras.ops.convert_to_numpy(variable)
        for variable in variables
        if id(variable) not in turned
    }


def assert_equal(found, expected, tolerance=1e-5):
    """Compares losses and states of two models of the same architecture."""
    (losses, values), (other_losses, other_values) = found, expected
    np.testing.assert_allclose(losses, other_losses, atol=tolerance)
    assert len(values) == len(other_values) and np.isfinite(losses).all()
    for (path, value), other in zip(values.items(), other_values.values(), strict=True):
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, other, atol=tolerance, err_msg=path)


def assert_unknown_alone(model, name):
    """Asserts that of all examples those of unknown tasks alone are NaN."""
    x, _ = data(name, 16)
    x["task"][[1, 13]] = [-1, TASKS]
    unknown = np.isnan(model.predict(x, batch_size=16, verbose=0))
    assert unknown.all(axis=1).nonzero()[0].tolist() == [1, 13]
    assert unknown.any(axis=1).sum() == 2
