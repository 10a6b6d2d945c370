"""A task that was removed answers nothing; the others answer as they did."""

import keras
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from keras import layers

import keras_psp
from keras_psp._core.task_layer import find_task_layers
from keras_psp.consolidation import EWC
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.optimizers import PerTask

NAMES = ["paris", "tokyo", "berlin"]
TASK = (np.arange(12) % 3).astype("int32")
OTHERS = TASK != 1


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


X = draw(12, 6)
LABELS = np.random.default_rng(1).integers(0, 3, 12)


def ask(model, task, x=X):
    name = next((name for name in model.input if name != "task"), "image")
    task = np.broadcast_to(np.asarray(task), len(x))
    return model.predict({name: x, "task": task}, verbose=0)


def compiled(optimizer="adam", **options):
    model = mlp((6,), 3, NAMES, units=8, depth=1, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.fit({"image": X, "task": TASK}, LABELS, verbose=0)
    return model


def all_layers():
    """A model with a layer of each kind that keeps something for each task."""
    x = keras.Input((6,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    parts = {"rank": 2, "base": True, "bias_per_task": True}
    y = keras_psp.layers.PSPDense(8, 3, **parts)(x, task)
    y = keras_psp.layers.TaskLayerNormalization(3)(y, task)
    y = layers.Reshape((2, 4))(y)
    attend = keras_psp.layers.PSPMultiHeadAttention(2, 2, 3, bias_per_task=True)
    y = attend(y, y, task=task)
    y = keras_psp.layers.PSPConv1D(4, 2, 3, "fast_rotation", padding="same")(y, task)
    y = keras_psp.layers.TaskDepthwiseConv1D(2, 3)(y, task)
    y = keras_psp.layers.TaskBatchNormalization(3)(layers.Flatten()(y), task)
    few = keras_psp.layers.PSPDense(4, 3, None, base=True, rank=2, core=2, bits=4)
    y = layers.Concatenate()([few(y, task), keras_psp.layers.TaskDense(3, 3)(y, task)])
    table = keras_psp.layers.TaskEmbedding(9, 7, 3)
    y = layers.Add()([y, table(x[:, 0], task)])
    model = TaskModel({"image": x, "task": task}, y)
    rng = np.random.default_rng(3)
    for weight in model.weights:
        if weight.dtype == "uint8":
            weight.assign(rng.integers(1, 256, size=weight.shape))
        elif weight.trainable or "moving" in weight.path or "scale" in weight.path:
            weight.assign(np.abs(rng.normal(size=weight.shape)))
    return model


def check_refused(model, task=1):
    """Checks that a task of a model with inputs of `X` is one outside the range."""
    wrong = np.where(np.arange(12) == 4, task, 0).astype("int32")
    inputs = {"image": X, "task": wrong}
    message = rf"\[0, {model.num_tasks}\).*not in \[{task}\].*removed.*task={task}"
    for call in (
        lambda: model(inputs),
        lambda: model.train_on_batch(inputs, LABELS),
        lambda: model.fit(inputs, LABELS, verbose=0),
        lambda: keras_psp.extract(model, task),
        lambda: model.remove_task(task),
        lambda: keras_psp.evaluate(model, {task: (X, LABELS)}),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    if BACKEND == "torch":
        with pytest.raises(ValueError, match=message):
            ask(model, wrong)
    else:
        y = ask(model, wrong)
        assert np.isnan(y[4]).all() and np.isfinite(np.delete(y, 4, axis=0)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"context": "binary"},
        once({"context": keras_psp.contexts.Binary(3, storage="seed")}),
        once({"context": keras_psp.contexts.Binary(3, storage="bits")}),
        {"context": "powers"},
        once({"context": "hadamard"}),
        once({"context": "permutation"}),
        once({"context": "complex", "learnable": True}),
        once({"context": "fast_rotation", "optimizer": EWC("sgd")}),
        once({"head": "multi", "optimizer": PerTask("adam")}),
    ],
    # Objects by their class: workers must find the same names.
    ids=lambda options: "-".join(
        each if isinstance(each, str) else type(each).__name__
        for each in options.values()
    ),
)
def test_the_others_stay_and_the_index_is_given_out_again(options, tmp_path):
    model = compiled(**options)
    old = [ask(model, k) for k in range(3)]
    assert model.remove_task("tokyo") is model
    assert model.task_names == ("paris", "", "berlin")
    assert (model.removed_tasks, model.present_tasks) == ((1,), [0, 2])
    for k in (0, 2):
        np.testing.assert_array_equal(ask(model, k), old[k])
    check_refused(model)
    with pytest.raises(ValueError, match="Unknown task.*'tokyo'"):
        ask(model, "tokyo")
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    assert read.task_names == model.task_names
    check_refused(read)
    for each in (model, read):
        x, task = X[OTHERS], TASK[OTHERS]
        each.fit({"image": x, "task": task}, LABELS[OTHERS], verbose=0)
        assert np.isfinite(ask(each, task, x)).all()
        kept = [ask(each, k) for k in (0, 2)]
        assert each.add_tasks(["rome", "oslo"]).task_names == (
            *("paris", "rome", "berlin", "oslo"),
        )
        assert each.removed_tasks == ()
        np.testing.assert_array_equal([ask(each, k) for k in (0, 2)], kept)
        new = ask(each, "rome")
        assert np.isfinite(new).all() and not np.allclose(new, old[1], atol=1e-3)
    if "head" not in options:  # Which begins at random.
        for name in ("rome", "oslo"):
            np.testing.assert_allclose(ask(read, name), ask(model, name), atol=1e-5)


def test_nothing_of_its_own_is_left_in_any_layer():
    model = all_layers()
    kept = [ask(model, k) for k in range(3)]
    model.remove_task(1)
    seen = 0
    for weight in model.weights:
        if getattr(weight, "keras_psp_task_rows", False):
            rows = keras.ops.convert_to_numpy(weight)
            assert not rows[1].any() and rows[0].any(), weight.path
            seen += 1
    assert seen > 15
    for k in (0, 2):
        np.testing.assert_array_equal(ask(model, k), kept[k])
    model.add_tasks(1)
    assert model.num_tasks == 3
    assert np.isfinite(ask(model, 1)).all()
    for k in (0, 2):
        np.testing.assert_array_equal(ask(model, k), kept[k])


@pytest.mark.once
@pytest.mark.parametrize("context", ["rotation", "powers", "hadamard"])
def test_kernels_cannot_be_read_once_the_index_is_given_out_again(context):
    def make(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((64,), name="x"), layers.Dense(8)])

    models = [make(seed) for seed in range(3)]
    one = keras_psp.superpose(models, context=context)
    kernel = models[1].layers[0].kernel

    def likeness(model):
        read = model.layers[-1].kernel
        pair = [keras.ops.convert_to_numpy(each).ravel() for each in (read, kernel)]
        return np.corrcoef(*pair)[0, 1]

    assert likeness(keras_psp.extract(one, 1)) > 0.5
    one.remove_task(1)
    one.add_tasks(1)
    assert abs(likeness(keras_psp.extract(one, 1))) < 0.2
    one.remove_tasks(n=1).add_tasks(2)
    for k in range(1, 4):
        if k != 2:
            assert abs(likeness(keras_psp.extract(one, k))) < 0.2


@pytest.mark.once
def test_what_an_optimizer_keeps_of_it_begins_anew():
    model = compiled(keras.optimizers.Adam(0.1), head="multi")
    names = {"momentum", "velocity"}

    def rows():
        return {
            each.path: keras.ops.convert_to_numpy(each)
            for each in model.optimizer.variables
            if names & set(each.path.split("_")) and each.shape[:1] == (3,)
        }

    before = rows()
    assert before and all(each[1].any() for each in before.values())
    steps = int(model.optimizer.iterations)
    model.remove_task(1)
    after = rows()
    assert after.keys() == before.keys() and int(model.optimizer.iterations) == steps
    for path, each in after.items():
        assert not each[1].any()
        np.testing.assert_array_equal(each[[0, 2]], before[path][[0, 2]])


@pytest.mark.once
def test_models_take_its_place_and_are_taken_out_of_the_kernels(tmp_path):
    def make(seed):
        keras.utils.set_random_seed(seed)
        hidden = layers.Dense(16, activation="relu")
        head = layers.Dense(3, bias_initializer="uniform")
        return keras.Sequential([keras.Input((6,), name="x"), hidden, head])

    models = [make(seed) for seed in range(6)]
    data = [draw(20, 6)] * 3
    for options in ({}, {"data": data}, {"bits": 8, "base": models[5], "data": data}):
        named = dict(zip(NAMES, models, strict=False))
        one = keras_psp.superpose(named, "fast_rotation", **options)
        berlin = ask(one, 2)
        one.remove_task("tokyo")
        given = {"rome": models[3], "oslo": models[4]}
        more = data[:2] if "data" in options else None
        keras_psp.surgery.add_models(one, given, data=more)
        assert one.task_names == ("paris", "rome", "berlin", "oslo")
        if "bits" in options:
            np.testing.assert_array_equal(ask(one, 2), berlin)
            for k, i in ((1, 3), (3, 4)):
                y = models[i].predict(X, verbose=0)
                np.testing.assert_allclose(ask(one, k), y, atol=0.05)
    one = keras_psp.superpose(dict(zip(NAMES, models, strict=False)))
    rest = [models[0], models[2]]
    keras_psp.surgery.remove_models(one, {"tokyo": models[1]})
    assert one.task_names == ("paris", "", "berlin")
    kernel = keras.ops.convert_to_numpy(one.layers[-1].kernel).copy()
    for each, k in zip(rest, (0, 2), strict=True):
        own = one.layers[-1].unbind_rows(each.layers[-1].kernel, k)
        kernel -= keras.ops.convert_to_numpy(own)
    np.testing.assert_allclose(kernel, 0, atol=1e-5)
    with pytest.raises(ValueError, match="these tasks of .* other weights"):
        keras_psp.surgery.remove_models(one, {"paris": models[5]})
    with pytest.raises(ValueError, match="at least one task"):
        keras_psp.surgery.remove_models(one, dict(paris=rest[0], berlin=rest[1]))


@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
def test_blocks_take_their_task_from_a_scope(tmp_path):
    @keras.saving.register_keras_serializable("keras_psp_tests", "RemovedBlock")
    class Block(layers.Layer):
        def build(self, shape):
            self.dense = layers.Dense(6)
            self.dense.build(shape)
            self.scale = layers.PReLU()
            self.scale.build(shape)

        def call(self, x):
            return self.scale(self.dense(x))

    @keras.saving.register_keras_serializable("keras_psp_tests", "RemovedModel")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.block = Block()

        def build(self, shape):
            self.block.build(shape)

        def call(self, x):
            return self.block(x)

    plain = Own()
    plain(X)
    one = keras_psp.convert(plain, NAMES, shared="copy")
    one.compile("sgd", "mse")
    one.fit({"inputs": X, "task": TASK}, X, verbose=0)

    def answer(model, task):
        with keras_psp.task(task):
            return model.predict(X, verbose=0)

    kept = [answer(one, k) for k in range(3)]
    one.remove_task("tokyo")
    one.save(tmp_path / "one.keras")
    for model in (one, keras.models.load_model(tmp_path / "one.keras")):
        assert model.task_names == ("paris", "", "berlin")
        for k in (0, 2):
            np.testing.assert_allclose(answer(model, k), kept[k], atol=1e-6)
        with pytest.raises(Exception, match=r"not in \[1\].*removed"):
            answer(model, 1)
        given = {"inputs": X, "task": TASK}
        with pytest.raises(ValueError, match=r"not in \[1\].*removed"):
            model.fit(given, X, verbose=0)
        if BACKEND != "torch":
            y = model.predict(given, verbose=0)
            np.testing.assert_array_equal(np.isnan(y).all(-1), ~OTHERS)
        assert model.add_tasks(["rome"]).task_names == ("paris", "rome", "berlin")
        expected = plain.predict(X, verbose=0)
        # Beside what the others have trained since.
        np.testing.assert_allclose(answer(model, "rome"), expected, atol=0.05)


def test_it_is_never_inferred():
    model = compiled()
    model.remove_task("tokyo")
    for method in ("entropy", "energy", "gradient"):
        tasks, confidences = keras_psp.infer_task(model, X, method=method)
        assert set(tasks) <= {0, 2} and np.isfinite(confidences).all()
    model.remove_task("paris")
    with pytest.raises(ValueError, match="has one task"):
        keras_psp.infer_task(model, X)


@pytest.mark.once
def test_diagnostics_leave_it_out():
    model = compiled()
    separate = keras_psp.diagnostics.memory(model).separate
    model.remove_task(1)
    result = keras_psp.diagnostics.memory(model)
    assert result.num_tasks == 2 and result.separate < separate
    for layer in keras_psp.diagnostics.interference(model).layers:
        assert not layer.energies[1].any() and not layer.energies[:, 1].any()
        assert (layer.signal[[0, 2]] > 0).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="which all export with")
def test_exported_it_answers_nothing(tmp_path):
    model = compiled()
    model.remove_task("tokyo")
    path = tmp_path / "model"
    card = keras_psp.export(model, path, tasks=["berlin"])
    assert card["task_names"] == ["paris", "", "berlin"]
    assert card["removed_tasks"] == [1] and "serve_task_2" in card["endpoints"]
    import tensorflow

    served = tensorflow.saved_model.load(str(path))
    y = np.array(served.serve({"image": X, "task": TASK}))
    np.testing.assert_array_equal(np.isnan(y).all(-1), ~OTHERS)
    assert set(np.array(served.infer_task({"image": X})["task"])) <= {0, 2}


@pytest.mark.once
def test_weights_tell_which_tasks_were_removed(tmp_path):
    model, other = compiled(), compiled()
    model.remove_task(1)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    other.load_weights(path)
    check_refused(other)
    np.testing.assert_array_equal(ask(other, 2), ask(model, 2))
    whole = compiled()
    whole.save_weights(path)
    model.load_weights(path)
    np.testing.assert_array_equal(ask(model, TASK), ask(whole, TASK))


@pytest.mark.once
def test_bad_input():
    model = compiled()
    for bad, error in ((3, ValueError), (-1, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="`task`"):
            model.remove_task(bad)
    with pytest.raises(ValueError, match="Unknown task.*'rome'"):
        model.remove_task("rome")
    model.remove_task(0).remove_task(2)
    with pytest.raises(ValueError, match="must keep at least one task"):
        model.remove_task(1)
    model.add_tasks(["rome"])
    assert model.task_names == ("rome", "tokyo", "")
    with pytest.raises(ValueError, match="name of its own"):
        model.add_tasks(["tokyo"])
    with pytest.raises(ValueError, match="must keep at least one task"):
        model.remove_task(0).remove_tasks(n=2)
    with pytest.raises(ValueError, match="soft contexts"):
        mlp((6,), 3, 2, units=8, depth=1, soft=True).remove_task(1)
    full = keras_psp.contexts.Hadamard(4)
    full.build((None, 4))
    full.remove_task(1)
    with pytest.raises(ValueError, match="at most 4 tasks"):
        full.reuse_task(1)
    layer = keras_psp.layers.TaskDense(2, 3)
    layer.build((None, 4))
    for bad, error in ((3, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="`task`"):
            layer.remove_task(bad)
    with pytest.raises(ValueError, match="must be one that was removed"):
        layer.reuse_task(1)
    assert layer.removed_tasks == ()


def test_a_clone_knows_which_tasks_were_removed():
    model = all_layers().remove_task(1)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for each in (clone, keras.Model(model.input, model.outputs)):
        layers = find_task_layers(each)
        assert {layer.removed_tasks for layer in layers} == {(1,)}
    np.testing.assert_allclose(ask(clone, 2), ask(model, 2), atol=1e-6)
    with pytest.raises(ValueError, match=r"not in \[1\]"):
        clone({"image": X, "task": TASK})
    assert clone.add_tasks(1).removed_tasks == ()
    assert clone.num_tasks == 3 and np.isfinite(ask(clone, 1)).all()


@pytest.mark.once
def test_a_copy_of_copies_knows_which_tasks_were_removed():
    x = keras.Input((4, 6), name="image")
    model = keras_psp.convert(keras.Model(x, keras.layers.GRU(3)(x)), 3, shared="copy")
    (copies,) = find_task_layers(model.remove_task(1))
    assert type(copies).from_config(copies.get_config()).removed_tasks == (1,)


def test_gram_keeps_how_far_it_has_gone_with_two_tasks():
    model = mlp((6,), 3, 2, units=8, depth=1, head="multi")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_psp.consolidation.Gram("adam"), loss)
    model.fit({"image": X, "task": TASK // 2}, LABELS, verbose=0)
    before = [np.array(path) for path in model.optimizer.paths]
    model.remove_task(1)
    np.testing.assert_array_equal(model.optimizer.paths, before)
    assert np.all(before)


def test_names_of_a_file_are_those_of_the_model(tmp_path):
    """No task answers by the weights of one of another name."""
    path, model = tmp_path / "model.weights.h5", compiled(head="multi")
    model.save_weights(path)
    expected = ask(model, "paris")
    others = mlp((6,), 3, ["tokyo", "paris", "berlin"], units=8, depth=1, head="multi")
    before = [np.array(w) for w in others.get_weights()]
    with pytest.raises(ValueError, match="must have the names of the model's"):
        others.load_weights(path)
    for a, b in zip(others.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.remove_task("tokyo").save_weights(path)
    again = mlp((6,), 3, NAMES, units=8, depth=1, head="multi")
    again.load_weights(path)
    assert again.task_names == model.task_names and again.removed_tasks == (1,)
    np.testing.assert_allclose(ask(again, "paris"), expected, atol=1e-6)
    model.add_tasks(["rome"]).save_weights(path)
    with pytest.raises(ValueError, match="'rome'"):
        mlp((6,), 3, NAMES, units=8, depth=1, head="multi").load_weights(path)
    others = mlp((6,), 3, 3, units=8, depth=1, head="multi")
    others.load_weights(path)
    assert others.task_names is None
