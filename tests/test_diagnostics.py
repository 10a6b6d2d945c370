import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_psp
from keras_psp import contexts
from keras_psp.diagnostics import capacity
from keras_psp.diagnostics import frontier
from keras_psp.diagnostics import interference
from keras_psp.diagnostics import memory
from keras_psp.diagnostics.interference import Interference
from keras_psp.diagnostics.interference import LayerInterference
from keras_psp.diagnostics.memory import PARTS
from keras_psp.diagnostics.memory import LayerMemory
from keras_psp.diagnostics.memory import Memory
from keras_psp.models import TaskModel
from keras_psp.models import mlp

to_numpy = keras.ops.convert_to_numpy


def draw(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def redraw(model, rng):
    """Gives a model weights of which none is like another; positive ones."""
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1.0, size=weight.shape))
    return model


def bound(layer, rows, task):
    """Rows of M numbers, times the matrix of a context."""
    matrix = to_numpy(layer.context(np.eye(rows.shape[-1], dtype="float32"), task))
    return rows @ matrix.astype("float64")


def energies_of(read, stored):
    """The definition, of each task's rows as they are bound."""
    grams = [rows.T @ rows for rows in read]
    kernels = [rows.T @ rows for rows in stored]
    return np.array(
        [
            [np.trace(g @ s) / (np.trace(g) * np.trace(s)) for s in kernels]
            for g in grams
        ]
    )


# Interference


def test_energies_are_those_of_bound_inputs(rng):
    """Fewer examples than inputs in one layer, and more of them in the other."""
    x, task = keras.Input((30,), name="x"), keras.Input((), dtype="int32", name="task")
    first = keras_psp.layers.PSPDense(6, num_tasks=3, context="rotation", name="first")
    last = keras_psp.layers.PSPDense(2, num_tasks=3, name="last")
    hidden = first(x, task)
    outputs = last(keras.ops.tanh(hidden), task)
    model = TaskModel({"x": x, "task": task}, outputs)
    data = [draw(rng, n, 30) + 0.5 for n in (20, 25, 12)]
    result = interference(model, data)
    assert [layer.name for layer in result.layers] == ["first", "last"]
    assert [layer.width for layer in result.layers] == [30, 6]
    kernel = to_numpy(first.kernel).astype("float64")
    rows = [bound(first, x, k) for k, x in enumerate(data)]
    inner = [bound(last, np.tanh(z @ kernel), k) for k, z in enumerate(rows)]
    for layer, expected in zip(result.layers, (rows, inner), strict=True):
        energies = energies_of(expected, expected)
        assert layer.energies.dtype == "float64"
        np.testing.assert_allclose(layer.energies, energies, rtol=1e-4)
        np.testing.assert_allclose(layer.signal, np.diag(energies), rtol=1e-4)
        others = [energies[k].sum() - energies[k, k] for k in range(3)]
        np.testing.assert_allclose(layer.interference, others, rtol=1e-4)
        assert layer.predicted == 2 / layer.width
    assert "first" in str(result) and "last" in str(result)


LINEAR = {  # A layer, the shape of its inputs, and what its kernel sums over.
    "convolution": (
        lambda: layers.Conv2D(3, 3, strides=2, padding="same", use_bias=False),
        (5, 5, 2),
        (0, 1, 2),
    ),
    "groups": (
        lambda: layers.Conv2D(4, 2, groups=2, use_bias=False),
        (4, 4, 6),
        (0, 1, 2),
    ),
    "einsum": (lambda: layers.EinsumDense("btd,dnh->btnh", (4, 2, 3)), (4, 6), 0),
    "einsum of groups": (lambda: layers.EinsumDense("bgd,gdh->bgh", (4, 3)), (4, 6), 1),
}


@pytest.mark.parametrize(
    ("name", "with_base"), [(name, True) for name in LINEAR] + [("groups", False)]
)
def test_energies_are_those_of_the_outputs(name, with_base, rng):
    """What a layer puts out for task j is what it reads of a kernel of task k."""
    make, shape, axes = LINEAR[name]

    def model():
        inputs = keras.Input(shape, name="x")
        return redraw(keras.Model(inputs, make()(inputs)), rng)

    models = [model() for _ in range(3)]
    base = model() if with_base else None
    data = [draw(rng, 5, *shape) for _ in range(3)]
    one = keras_psp.superpose(models, "rotation", base=base)
    layer, plain = one.layers[-1], model().layers[-1]
    of_base = to_numpy(base.layers[-1].kernel) if with_base else 0.0

    def outputs(x, kernel):
        plain.kernel.assign(kernel)
        return to_numpy(plain(x)).astype("float64")

    expected = np.empty((3, 3))
    for k in range(3):
        kernel = to_numpy(models[k].layers[-1].kernel) - of_base
        rows = layer.context.unbind_kernel(layer.kernel_rows(kernel), k)
        for j in range(3):
            seen = layer.kernel_of_rows(layer.context.bind_kernel(rows, j))
            energy = np.square(outputs(data[j], seen)).sum()
            # The most: what each filter looks at, all along the filter.
            looked_at = outputs(np.square(data[j]), np.ones_like(kernel))
            most = (looked_at * np.square(kernel).sum(axis=axes)).sum()
            expected[j, k] = energy / most
    (result,) = interference(one, data, models).layers
    np.testing.assert_allclose(result.energies, expected, rtol=1e-4)
    others = expected[0, 1] + expected[0, 2]
    np.testing.assert_allclose(result.interference[0], others, rtol=1e-4)


FAMILIES = ("binary", "rotation", "signed_permutation")


@pytest.mark.once
@pytest.mark.parametrize("with_models", [False, True])
def test_random_contexts_meet_the_prediction(with_models, rng):
    """All tasks read and store one direction: nothing but contexts tells them apart."""
    width, num_tasks = 128, 16
    direction = rng.choice([-1.0, 1.0], size=(width, 1)).astype("float32")
    model = keras.Sequential([keras.Input((width,), name="x"), layers.Dense(1)])
    model.layers[-1].kernel.assign(direction)
    models = [model] * num_tasks
    data = [direction.T] * num_tasks

    def measure(family):
        one = keras_psp.superpose(models, family)
        (layer,) = interference(one, data, models if with_models else None).layers
        np.testing.assert_allclose(layer.signal, 1.0, rtol=1e-5)
        return layer

    for family in FAMILIES:
        layer = measure(family)
        # M E is the square of a normal number, for each of 120 pairs.
        error = 4 * np.sqrt(2 / (num_tasks * (num_tasks - 1) / 2))
        mean = layer.interference.mean()
        np.testing.assert_allclose(mean, layer.predicted, rtol=error, err_msg=family)
    np.testing.assert_allclose(measure("identity").energies, 1.0, rtol=1e-5)
    np.testing.assert_allclose(measure("hadamard").interference, 0.0, atol=1e-9)


@pytest.mark.once
def test_permutations_of_rectified_units_are_as_bad_as_measured():
    def measure(family):
        model = mlp((64,), 10, num_tasks=3, units=256, depth=1, context=family)
        return interference(model).layers

    pairs = zip(measure("permutation"), measure("binary"), strict=True)
    for permutation, binary in pairs:
        assert permutation.interference.mean() > 5 * binary.interference.mean()
    for layer in measure("identity"):  # The same inputs for every task.
        np.testing.assert_allclose(layer.energies, layer.energies[0, 0], rtol=1e-4)


def test_models_inside_models_and_layers_called_twice(rng):
    def make(nested):
        x = keras.Input((6,), name="x")
        inner = layers.Dense(6, activation="tanh", name="inner")
        if nested:
            inner = keras.Sequential([keras.Input((6,)), inner], name="net")
        y = inner(inner(layers.Dense(6, name="outer")(x)))
        return keras.Model(x, layers.Dense(2, name="head")(y))

    data = [draw(rng, 8, 6) for _ in range(3)]
    results = []
    for nested in (False, True):
        model = redraw(make(nested), np.random.default_rng(1))
        result = interference(keras_psp.convert(model, 3), data, [model] * 3)
        assert not result.layers[0].energies.any()  # They differ in nothing from it.
        result = interference(keras_psp.convert(model, 3), data)
        results.append({layer.name: layer.energies for layer in result.layers})
    flat, nested = results
    assert sorted(flat) == sorted(nested) == ["head", "inner", "outer"]
    for name, energies in flat.items():
        np.testing.assert_allclose(nested[name], energies, rtol=1e-4)


def test_contexts_over_channels_bind_every_place(rng):
    x = keras.Input((4, 4, 6), name="x")
    task = keras.Input((), dtype="int32", name="task")
    conv = keras_psp.layers.PSPConv2D(2, 3, 3, "rotation", context_over="channels")
    model = TaskModel({"x": x, "task": task}, conv(x, task))
    data = [draw(rng, 5, 4, 4, 6) + 0.3 for _ in range(3)]
    rows = []
    for k, x in enumerate(data):
        z = bound(conv, x.reshape(-1, 6), k).reshape(x.shape)
        patches = np.lib.stride_tricks.sliding_window_view(z, (3, 3), axis=(1, 2))
        rows.append(patches.reshape(5 * 2 * 2, 6 * 3 * 3))
    (layer,) = interference(model, data).layers
    np.testing.assert_allclose(layer.energies, energies_of(rows, rows), rtol=1e-4)
    assert layer.width == 6


@pytest.mark.parametrize("options", [{"soft": True}, {"complex_valued": True}])
def test_other_perceptrons(options):
    model = mlp((8,), 3, 2, units=4, depth=1, context="complex", **options)
    result = interference(model)
    expected = 2 if "complex_valued" in options else 1
    assert [layer.width for layer in result.layers] == [8 * expected, 4 * expected]
    if "soft" in options:
        hard = interference(mlp((8,), 3, 2, units=4, depth=1, context="complex"))
        for layer, other in zip(result.layers, hard.layers, strict=True):
            np.testing.assert_allclose(layer.energies, other.energies, rtol=1e-4)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert ("PSPComplexDense" in kinds) == ("complex_valued" in options)


def test_many_examples_come_in_batches_and_are_drawn_from(rng):
    model = mlp((8,), 3, 2, units=4, depth=0)
    layer = model.get_layer("logits")
    data = [draw(rng, 150, 8) for _ in range(2)]
    for x in data:
        x[100:] += 3.0
    rows = [bound(layer, x, k) for k, x in enumerate(data)]
    batches = [[x[:70], x[70:]] for x in data]
    (layer,) = interference(model, batches).layers
    np.testing.assert_allclose(layer.energies, energies_of(rows, rows), rtol=1e-4)
    data = [np.repeat(x[:1], 1000, axis=0) for x in data]  # They are all alike.
    rows = [z[:1] for z in rows]
    (layer,) = interference(model, data).layers
    np.testing.assert_allclose(layer.energies, energies_of(rows, rows), rtol=1e-4)


def test_who_reads_nothing_has_no_interference():
    data = [np.ones((2, 8)), np.zeros((2, 8))]
    layer = interference(mlp((8,), 3, 2, units=4, depth=1), data).layers[0]
    np.testing.assert_allclose(layer.energies, [[1, 0], [0, 0]], rtol=1e-5)


def test_interference_refuses():
    model = mlp((8,), 3, 2, units=4, depth=1)
    x = np.ones((3, 8))
    for wrong in (keras.Sequential([keras.Input((8,)), layers.Dense(2)]), None):
        with pytest.raises(TypeError, match="must be a .*TaskModel"):
            interference(wrong)
        with pytest.raises(TypeError, match="must be a"):
            memory(wrong)
        with pytest.raises(TypeError, match="must be a"):
            capacity(wrong)
    other = TASK_MODELS["separate"]()
    for function in (interference, capacity):
        with pytest.raises(ValueError, match="must have a superposed layer"):
            function(other)
    with pytest.raises(ValueError, match="1 sets of inputs for 2 tasks"):
        interference(model, [x])
    with pytest.raises(TypeError, match="array"):
        interference(model, [1, 2])
    with pytest.raises(ValueError, match="inputs 'image' of shape"):
        interference(model, [x, x[:, :4]])
    with pytest.raises(ValueError, match="must be finite"):
        interference(model, [x, x * np.nan])
    model.get_layer("dense_0").kernel.assign(np.full((8, 4), np.nan))
    with pytest.raises(ValueError, match="'logits' reads and stores must be finite"):
        interference(model, [x, x])


def test_interference_refuses_models_of_another_kind():
    def make(units, name=None):
        return keras.Sequential(
            [keras.Input((8,), name="x"), layers.Dense(units, name=name)]
        )

    models = [make(4), make(4)]  # Whose layers have other names.
    one = keras_psp.superpose(models)
    assert len(interference(one, models=models).layers) == 1
    with pytest.raises(ValueError, match="1 models for 2 tasks"):
        interference(one, models=models[:1])
    with pytest.raises(ValueError, match="same shapes.*for 'dense"):
        interference(one, models=[models[0], make(5)])
    with pytest.raises(ValueError, match="the first of which has the names"):
        interference(one, models=[make(4, "other"), models[1]])


def test_interference_refuses_what_it_cannot_draw():
    task = keras.Input((), dtype="int32", name="task")
    for x, data in (
        (keras.Input((None, 4), name="x"), np.ones((2, 3, 4))),
        (keras.Input((3,), dtype="int32", name="x"), np.ones((2, 3), "int32")),
    ):
        y = layers.Embedding(5, 4)(x) if x.dtype == "int32" else x
        y = keras_psp.layers.PSPDense(2, num_tasks=2)(y, task)
        model = TaskModel({"x": x, "task": task}, y)
        with pytest.raises(ValueError, match="`data` must be given.*'x'"):
            interference(model)
        assert interference(model, [data, data]).layers[0].width == 4


def test_interference_refuses_a_layer_with_a_task_of_its_own():
    x, task = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="task")
    for other in (1, 1 - task):
        y = keras_psp.layers.PSPDense(3, num_tasks=2, name="psp")(x, other)
        inner = TaskModel({"x": x, "task": task}, y)
        with pytest.raises(ValueError, match="other than the model's own.*'psp'"):
            interference(inner)
    y = keras_psp.layers.PSPDense(3, num_tasks=2)(x, task)
    inner = TaskModel({"x": x, "task": task}, y, name="inner")
    model = TaskModel({"x": x, "task": task}, inner({"x": x, "task": 1 - task}))
    with pytest.raises(ValueError, match="other than the model's own.*'inner'"):
        interference(model)


# Memory


def convolutional():
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.PReLU(shared_axes=(1, 2), name="prelu")(x)
    model = keras.Model(image, layers.Dense(3, name="head")(layers.Flatten()(x)))
    return keras_psp.convert(model, 3, layers=["conv", "norm", "head"])


def separate():
    x, task = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="task")
    y = keras_psp.layers.TaskDense(3, num_tasks=3)(x, task)
    y = keras_psp.layers.TaskBatchNormalization(num_tasks=3)(y, task)
    return TaskModel({"x": x, "task": task}, y)


def with_shared_context():
    context = contexts.Rotation(3)
    x, task = keras.Input((4,), name="x"), keras.Input((), dtype="int32", name="task")
    y = keras_psp.layers.PSPDense(4, context=context)(x, task)
    y = keras_psp.layers.PSPDense(4, context=context)(y, task)
    return TaskModel({"x": x, "task": task}, y)


TASK_MODELS = {
    "mlp": lambda: mlp((4, 4), 3, 3, 8, 2),
    "bits": lambda: mlp((4, 4), 3, 3, 8, context=contexts.Binary(3, storage="bits")),
    "multi": lambda: mlp((4, 4), 3, 3, 8, 2, head="multi"),
    "shared": lambda: mlp((4, 4), 3, 3, 8, 2, head="shared"),
    "converted": convolutional,
    "separate": separate,
    "context": with_shared_context,
}


@pytest.mark.parametrize("name", TASK_MODELS)
def test_memory_is_that_of_the_weights(name):
    model = TASK_MODELS[name]()
    result = memory(model)
    held = {id(w): to_numpy(w).nbytes for w in model.weights}
    assert result.total == sum(held.values())
    assert result.total == sum(result.parts.values())
    assert result.total == sum(layer.total for layer in result.layers)
    plain = keras_psp.extract(model, 0)
    one = sum(to_numpy(weight).nbytes for weight in plain.weights)
    assert result.separate == 3 * one
    assert result.ratio == 3 * one / result.total
    for layer in result.layers:
        weights = plain.get_layer(layer.name).weights
        assert layer.separate == 3 * sum(to_numpy(w).nbytes for w in weights)
    assert "all" in str(result)


def test_parts_of_memory():
    result = memory(convolutional())
    kernels = 4 * (3 * 3 * 2 * 4 + 64 * 3)
    assert result.parts == {
        "kernels": kernels,
        "base_kernels": kernels,
        "core": 0,
        "low_rank": 0,
        "contexts": 3 * (3 * 3 * 2 + 64),
        "task_state": 3 * 4 * (4 + 4 * 4 + 3),
        "shared": 4 * 4,
    }
    conv, norm, prelu, head = result.layers
    assert (conv.name, norm.name, prelu.name) == ("conv", "norm", "prelu")
    assert head.parts["task_state"] == 3 * 4 * 3
    assert norm.total == norm.separate == 3 * 4 * 16
    assert prelu.separate == 3 * prelu.total


def test_memory_of_other_dtypes():
    x, task = keras.Input((8,), name="x"), keras.Input((), dtype="int32", name="task")
    seeds = contexts.Binary(1000, storage="seed")
    y = keras_psp.layers.PSPDense(8, context=seeds, dtype="bfloat16")(x, task)
    model = TaskModel({"x": x, "task": task}, y)
    result = memory(model)
    assert result.parts["kernels"] == 2 * 8 * 8
    assert result.parts["contexts"] == 0
    model.layers[-1].quantize("int8")
    quantized = memory(model).parts["kernels"]
    assert 8 * 8 < quantized < 2 * 8 * 8  # With scales.


# Capacity


@pytest.mark.once
def test_capacity_of_widths():
    result = capacity([100, 2048], tolerance=0.29)
    assert [layer.num_tasks(0.29) for layer in result.layers] == [30, 594]
    assert result.num_tasks == 30
    assert capacity([100, 50], tolerance=0.0).num_tasks == 1
    assert capacity([100, 50], 0.1, "none").num_tasks == 6
    assert capacity([100, 50], 0.1, consolidation="gram").num_tasks == 11
    assert capacity(np.array([64])).num_tasks == 4
    for width in range(1, 300):
        number = capacity([width]).num_tasks
        assert (number - 1) / width <= capacity([width]).tolerance < number / width


def test_capacity_of_models():
    result = capacity(mlp((100,), 3, 2, units=60, depth=1), 0.5)
    assert [(layer.name, layer.width) for layer in result.layers] == [
        ("dense_0", 100),
        ("logits", 60),
    ]
    assert result.num_tasks == 31
    assert "dense_0" in str(result)
    few = capacity(mlp((16,), 3, 2, units=16, depth=1, context="hadamard"), 2.0)
    assert few.num_tasks == 16  # There are no more rows.
    model = mlp((16,), 3, 2, units=16, depth=1, context="hadamard")
    assert capacity(model, 1.0, "gram").num_tasks == 16
    assert capacity(mlp((16,), 3, 2, 16, context="identity"), 2.0).num_tasks == 1


@pytest.mark.once
def test_capacity_refuses():
    for widths in ([10, 0], [-1]):
        with pytest.raises(ValueError, match="`width` must be a positive integer"):
            capacity(widths)
    for widths in ([1.5], ["8"], [True]):
        with pytest.raises(TypeError, match="`width` must be a positive integer"):
            capacity(widths)
    for widths in (8, "88"):
        with pytest.raises(TypeError, match="or a list of integers"):
            capacity(widths)
    with pytest.raises(ValueError, match="at least one width"):
        capacity([])
    with pytest.raises(ValueError, match="Unknown consolidation.*'gram'"):
        capacity([8], consolidation="grams")
    for tolerance in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`tolerance` must be a number"):
            capacity([8], tolerance)
    with pytest.raises(TypeError, match="`tolerance` must be a number"):
        capacity([8], "much")


# Plots


def results():
    energies = np.array([[0.5, 0.0, 0.01], [0.02, 0.6, 0.03], [0.1, 0.1, 0.4]])
    parts = {"kernels": 4000, "contexts": 300, "shared": 0}
    parts = {part: parts.get(part, 100) for part in PARTS}
    for number in (2, 30):
        names = [f"layer_{i}_of_a_long_name_that_is_cut" for i in range(number)]
        yield Interference(
            tuple(LayerInterference(name, 64, energies) for name in names)
        )
        yield Memory(3, tuple(LayerMemory(name, parts, 13_000) for name in names))
        yield capacity(range(8, 8 + number))
    yield capacity([8], 0.0)


@pytest.mark.once
def test_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    for i, result in enumerate(results()):
        path = tmp_path / f"{i}.png"
        figure = result.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        for axis in figure.axes:
            assert axis.get_xlabel() or axis.get_ylabel()


@pytest.mark.once
def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        capacity([8]).plot()


# Frontier


@pytest.mark.once
def test_frontier_compares_errors_and_memory(capsys, tmp_path):
    rng = np.random.default_rng(0)
    base = keras.Sequential([keras.Input((20,), name="x"), layers.Dense(12)])
    models = []
    for _ in range(3):
        models.append(keras.models.clone_model(base))
        kernel = to_numpy(base.layers[0].kernel)
        change = 0.1 * np.outer(rng.normal(size=20), rng.normal(size=12))
        models[-1].layers[0].kernel.assign(kernel + change)
    data = [draw(rng, 50, 20) for _ in models]

    def evaluate(one):
        (name,) = set(one.input) - {"task"}
        errors = []
        for k, (model, x) in enumerate(zip(models, data, strict=True)):
            ours = one.predict({name: x, "task": np.full(50, k)}, verbose=0)
            own = model.predict(x, verbose=0)
            errors.append(np.square(ours - own).sum() / (50 * own.var(0).sum()))
        return np.mean(errors)

    result = frontier(models, base, data, evaluate, budgets=[1.5, 0.01, 0.8])
    rows = {(row["system"], row["size"]): row for row in result.rows}
    ours = [row for row in result.rows if row["system"] == "superpose(budget=)"]
    assert [row["size"] for row in ours] == ["0.8 networks", "1.5 networks"]
    assert all(row["memory"] <= float(row["size"].split()[0]) for row in ours)
    assert ours[1]["error"] < ours[0]["error"]
    # The error is that of the models which `evaluate` is given.
    for row in result.rows:
        np.testing.assert_allclose(row["error"], row["evaluate"], rtol=1e-3, atol=1e-9)
    copies = rows["copies", "4 bits"]
    # Codes, and for each task a scale and a bias of twelve columns.
    expected = (3 * (20 * 12 / 2 + 2 * 4 * 12)) / (4 * base.count_params())
    np.testing.assert_allclose(copies["memory"], expected)
    # The differences are of rank one.
    assert rows["low rank", "2 in 4 bits"]["error"] < copies["error"]
    for system in ("differences", "low rank"):
        errors = [row["error"] for row in result.rows if row["system"] == system]
        assert errors == sorted(errors, reverse=True) or system == "low rank"
    assert "18/18" in capsys.readouterr().out
    lines = str(result).splitlines()
    assert lines[0].split() == ["memory", "error", "evaluate"]
    assert lines[1].startswith("superpose(budget=), 0.8 networks")
    assert len(lines) == 1 + len(result.rows)
    result.plot(tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 0


def test_frontier_says_what_is_wrong():
    base = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])
    models = [keras.models.clone_model(base) for _ in range(2)]
    x = np.zeros((5, 4), "float32")
    with pytest.raises(TypeError, match="`data` must be a list"):
        frontier(models, base)
    with pytest.raises(ValueError, match="at least two"):
        frontier(models[:1], base, [x])
    with pytest.raises(TypeError, match="`budgets`"):
        frontier(models, base, [x] * 2, budgets=["1"])
