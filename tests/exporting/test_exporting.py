"""Exported models, in the runtimes that they are for; layers are tested with theirs."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import zipfile

import keras
import keras_hub
import numpy as np
import pytest
from conftest import BACKEND
from layer_checks import fill

import keras_psp
from keras_psp import cli
from keras_psp import contexts
from keras_psp.exporting import _run_artifact as run_artifact
from keras_psp.exporting._card import describe
from keras_psp.exporting._check import Check
from keras_psp.exporting._formats import FORMATS
from keras_psp.exporting._write import write
from keras_psp.exporting.export import _output_names
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskBatchNormalization
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models import resnet18
from keras_psp.models._seeded_layers import HEADS

NUM_TASKS = 5


def small():
    return mlp((4,), num_classes=3, num_tasks=NUM_TASKS, units=8, depth=1)


def convolutional():
    image = keras.Input((8, 8, 2), name="image")
    task = keras.Input((), dtype="int32", name="task")
    x = PSPConv2D(4, 3, NUM_TASKS, padding="same", activation="relu")(image, task)
    x = TaskBatchNormalization(NUM_TASKS, affine_per_task=True)(x, task)
    x = PSPConv2D(4, 3, NUM_TASKS, context_over="channels", strides=2)(x, task)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = in_few_bits(x, task)
    return TaskModel({"image": image, "task": task}, PSPDense(3, NUM_TASKS)(x, task))


def in_few_bits(x, task):
    """Layers whose kernels the exported graph unpacks."""
    options = {"context": None, "base": True, "bits": {"base": 4, "core": 7, "rank": 3}}
    x = fill(PSPDense(8, NUM_TASKS, core=3, rank=2, **options), x.shape)(x, task)
    options["bits"] = {"base": 4, "rank": 3}
    return fill(PSPDense(8, NUM_TASKS, rank="full", **options), x.shape)(x, task)


def of_families():
    image = x = keras.Input((8,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    # OpenVINO cannot multiply with a matrix for each task and dynamic batches.
    for seed, family in enumerate(sorted({*contexts.FAMILIES} - {"rotation"})):
        x = PSPDense(8, context=contexts.get(family, NUM_TASKS, seed))(x, task)
    return TaskModel({"image": image, "task": task}, in_few_bits(x, task))


def converted():
    image = keras.Input((6, 6, 2), name="image")
    x = keras.layers.Conv2D(4, 3)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    return keras_psp.convert(keras.Model(image, x), NUM_TASKS)


def superposed():
    base = keras.Sequential([keras.Input((4,), name="image"), keras.layers.Dense(3)])
    models = [keras.models.clone_model(base) for _ in range(NUM_TASKS)]
    return keras_psp.superpose(models, base=base)


def draw(model, n):
    rng = np.random.default_rng(3)
    image = rng.normal(size=(n, *model.input["image"].shape[1:])).astype("float32")
    return {"image": image, "task": (np.arange(n) * 3 % NUM_TASKS).astype("int32")}


def test_saved_model(tmp_path, capsys):
    tf = pytest.importorskip("tensorflow")
    model, path = small(), str(tmp_path / "served")
    model.save(tmp_path / "model.keras")
    command = ["export", str(tmp_path / "model.keras"), path, "--task", "3"]
    assert cli.main(command) == 0
    assert "endpoints: serve, serve_task_3, infer_task" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "served"]
    served = tf.saved_model.load(path)
    declared = served.signatures["serving_default"].structured_input_signature[1]
    assert {name: spec.dtype.name for name, spec in declared.items()} == {
        "image": "float32",
        "task": "int32",
    }
    x = draw(model, 9)
    expected = model.predict(x, verbose=0)
    x["task"][4] = NUM_TASKS
    expected[4] = np.nan
    for n in (9, 1):
        inputs = {name: value[:n] for name, value in x.items()}
        for call in (served.serve, lambda x: served.signatures["serve"](**x)):
            y = call({name: tf.constant(value) for name, value in inputs.items()})
            y = y["output_0"] if isinstance(y, dict) else y
            np.testing.assert_allclose(y, expected[:n], rtol=1e-5, atol=1e-5)
    wide = tf.constant(x["task"], "int64") + tf.constant([0] * 8 + [2**32], "int64")
    y = served.serve({"image": tf.constant(x["image"]), "task": wide}).numpy()
    assert np.isnan(y[8]).all()  # 2**32 is not task 0.
    np.testing.assert_allclose(y[:8], expected[:8], rtol=1e-5, atol=1e-5)

    others = {"image": tf.constant(x["image"])}
    third = model.predict({**x, "task": np.full(9, 3, "int32")}, verbose=0)
    y = served.serve_task_3(others)
    np.testing.assert_allclose(y, third, rtol=1e-5, atol=1e-5)
    tasks, confidences = keras_psp.infer_task(model, x["image"])
    found = served.infer_task(others)
    np.testing.assert_array_equal(found["task"], tasks)
    np.testing.assert_allclose(found["confidence"], confidences, atol=1e-5)
    nothing = served.infer_task({"image": tf.constant([[np.nan, 0.0, 0.0, 0.0]])})
    assert nothing["task"].numpy() == [-1]

    serve, image = served.signatures["serve"], tf.constant(x["image"])
    task = tf.constant(x["task"])
    for wrong in (
        {"image": image, "tusk": task},
        {"image": image},
        {"image": image, "task": tf.cast(task, "float32")},
        {"image": image, "task": task[None]},
        {"image": image[:, :2], "task": task},
        {"image": tf.cast(image, "float64"), "task": task},
    ):
        with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
            serve(**wrong)

    card = json.loads((tmp_path / "served/assets.extra/keras_psp.json").read_text())
    assert card["num_tasks"] == NUM_TASKS and card["backend"] == BACKEND
    assert card["contexts"]["dense_0"]["class_name"] == "Binary"
    assert card["inputs"]["task"] == {"shape": [None], "dtype": "int32"}
    assert card["versions"]["keras_psp"] == keras_psp.__version__
    assert card["difference"] <= 1e-5 and card["batch_sizes"] == [1, 7, 64]

    if BACKEND != "tensorflow":
        return  # The others write the same.
    np.save(tmp_path / "image.npy", x["image"])
    command = "-m tensorflow.python.tools.saved_model_cli run --tag_set serve".split()
    command += ["--dir", path, "--signature_def", "serve_task_3"]
    command += ["--inputs", f"image={tmp_path}/image.npy", "--outdir", str(tmp_path)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    y = np.load(tmp_path / "output_0.npy")
    np.testing.assert_allclose(y, third, rtol=1e-5, atol=1e-5)


@pytest.mark.once
def test_layers_of_ones_own(tmp_path):
    @keras.saving.register_keras_serializable(package="mine")
    def double(x):
        return 2 * x

    @keras.saving.register_keras_serializable(package="mine")
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=shape[-1:], initializer="ones")

        def call(self, x):
            return x * self.scale

    class Block(keras.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.hidden = keras.layers.Dense(units, activation=double)
            self.scale = Scale()
            self.never_called = keras.layers.Conv2D(2, 3)

        def build(self, shape):
            self.hidden.build(shape)
            self.scale.build((*shape[:-1], self.units))

        def call(self, x):
            return self.scale(self.hidden(x))

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    class After(keras.layers.Layer):  # Of no name that keras_psp has.
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = keras.layers.Dense(4)

        def build(self, shape):
            self.hidden.build(shape)

        def call(self, x):
            return self.hidden(x)

    def loss(y, found):
        return y - found

    x = keras.Input((4,), name="image")
    plain = keras.Model(x, keras.layers.Dense(3)(After()(Block(5)(x))))
    model = keras_psp.convert(plain, NUM_TASKS, shared="copy")
    model.compile("sgd", loss)  # Which is not exported.
    for weight in model.weights:
        if "float" in weight.dtype:
            noise = np.random.default_rng(len(weight.path)).normal(size=weight.shape)
            weight.assign(weight + 0.1 * noise)
    card = keras_psp.export(model, tmp_path / "model")
    assert card["difference"] <= 1e-5


@pytest.mark.once
@pytest.mark.parametrize(
    "format, name", [("onnx", "m.onnx"), ("litert", "m.tflite"), ("openvino", "m.xml")]
)
def test_a_model_inside_takes_the_task_of_the_whole(format, name, tmp_path):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 4, "intermediate_dim": 4}
    backbone = keras_hub.models.BertBackbone(11, max_sequence_length=6, **sizes)
    plain = keras_hub.models.BertTextClassifier(backbone, 2)
    model = keras_psp.convert(plain, 2, shared="copy")
    x = {key: np.ones((4, 6), "int32") for key in plain.input}
    card = keras_psp.export(model, tmp_path / name, format, data=x)
    assert card["difference"] <= 1e-5
    if format == "openvino":  # Whose first answer behind a branch may be anything.
        assert 'type="If"' not in (tmp_path / name).read_text()


def test_random_inputs_that_do_not_fit_ask_for_data(tmp_path):
    x = keras.Input((None,), name="inputs")  # Also an argument's name in a SavedModel.
    six = keras.layers.Dense(2)(keras.layers.Reshape((6,))(x))
    model = keras.Model(x, six)
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(ValueError, match=r"Give `data=`.*\(64, 32\)"):
        keras_psp.export(model, tmp_path / "model")
    assert not os.listdir(tmp_path)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    card = keras_psp.export(model, tmp_path / "model", data=np.ones((5, 6)))
    assert card["difference"] < 1e-6


# The others are written by the same processes, and each is tested from one backend.
WRITTEN = {
    ("jax", "onnx"): (convolutional, ".onnx"),
    ("tensorflow", "litert"): (convolutional, ".tflite"),
    ("tensorflow", "openvino"): (of_families, ".xml"),
    ("torch", "torch"): (convolutional, ".pt2"),
}

# What the runtimes raise for requests that are not as declared.
REFUSALS = {
    "onnx": Exception,
    "litert": (ValueError, RuntimeError),
    "openvino": RuntimeError,
    "torch": (ValueError, RuntimeError, AssertionError),
}


@pytest.mark.parametrize("format", [f for b, f in WRITTEN if b == BACKEND])
def test_other_runtimes(format, tmp_path):
    make, suffix = WRITTEN[BACKEND, format]
    model, path = make(), tmp_path / f"model{suffix}"
    path.write_text("an older one")
    x = draw(model, 9)
    card = keras_psp.export(model, path, format, overwrite=True, data=x["image"])
    also = ["model.bin"] if format == "openvino" else []
    names = [*also, path.name, f"{path.name}.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert card == json.loads((tmp_path / f"{path.name}.json").read_text())
    assert card["endpoints"] == ["serve"]
    call = run_artifact.load(str(path))
    expected = model.predict(x, verbose=0)
    x["task"][4] = NUM_TASKS
    expected[4] = np.nan
    for n in (9, 1, 6):
        (y,) = call("serve", {name: value[:n] for name, value in x.items()}).values()
        np.testing.assert_allclose(y, expected[:n], rtol=1e-5, atol=1e-5)
    wrong = {
        "name": {"image": x["image"], "tusk": x["task"]},
        "dtype": {"image": x["image"], "task": x["task"].astype("float32")},
        "shape": {"image": x["image"][..., :1], "task": x["task"]},
    }
    if format == "openvino":
        del wrong["dtype"]  # Which it casts.
    for request in wrong.values():
        with pytest.raises(REFUSALS[format]):
            call("serve", request)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's format")
def test_torch_takes_texts_of_any_length_in_several_inputs(tmp_path):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    mask = keras.Input((None,), name="mask")
    x = keras.layers.Embedding(11, 4)(tokens)
    x = keras.layers.Add()([x, keras_hub.layers.PositionEmbedding(16)(x)])
    x = keras.layers.Multiply()([x, keras.layers.Reshape((-1, 1))(mask)])
    plain = keras.Model([tokens, mask], keras.layers.Dense(2)(x))
    model = keras_psp.convert(plain, 3, shared="copy")
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    write(model, str(tmp_path / "model.pt2"), "torch", ["output_0"])
    serve = run_artifact.load(str(tmp_path / "model.pt2"))
    for batch, length in ((2, 5), (3, 16)):
        x = {"tokens": rng.integers(11, size=(batch, length)).astype("int32")}
        x |= {"mask": rng.uniform(size=(batch, length)).astype("float32")}
        x |= {"task": np.arange(batch, dtype="int32")}
        expected = model.predict(x, verbose=0)
        found = serve("serve", x)["output_0"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


BUILDERS = {
    **{head: lambda head=head: mlp((4,), 3, NUM_TASKS, head=head) for head in HEADS},
    "complex": lambda: mlp((4,), 3, NUM_TASKS, complex_valued=True),
    "resnet18": lambda: resnet18((8, 8, 2), 3, NUM_TASKS, width=0.0625),
    "convert": converted,
    "superpose": superposed,
    "families": of_families,
}


@pytest.mark.once
@pytest.mark.parametrize("name", BUILDERS)
def test_keras_files_are_safe(name, tmp_path):
    path = tmp_path / "model.keras"
    BUILDERS[name]().save(path)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        config = archive.read("config.json").decode()
    assert names == {"config.json", "metadata.json", "model.weights.h5"}
    assert "lambda" not in config.lower()
    keras.saving.load_model(path, safe_mode=True)


def test_untrusted_code_is_not_run(tmp_path, capsys):
    x = keras.Input((4,))
    y = keras.layers.Lambda(lambda x: print("run") or x)(x)
    keras.Model(x, y).save(tmp_path / "evil.keras")
    capsys.readouterr()
    arguments = [str(tmp_path / name) for name in ("evil.keras", "model")]
    assert cli.main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    assert "lambda" in err and "run" not in out
    assert os.listdir(tmp_path) == ["evil.keras"]


def with_layer(layer, shape=(None, 4)):
    x = keras.Input(batch_shape=shape, name="image")
    return keras.Model(x, layer(x), name="net")


def unpicklable():
    lock = threading.Lock()

    class Locked(keras.layers.Layer):
        def call(self, x):
            with lock:
                return x

    return Locked()


class Subclassed(keras.Model):
    def call(self, x):
        return x


BAD = {
    "format": (small, {"format": "onxx"}, ValueError, "mean 'onnx'"),
    "suffix": (small, {"format": "onnx"}, ValueError, "must end with '.onnx'"),
    "folder": (small, {"path": "model.pt2"}, ValueError, "must not end with"),
    "no-folder": (small, {"path": "no/model"}, FileNotFoundError, "does not exist"),
    "unwritable": (small, {"path": "/proc/model"}, OSError, "/proc"),
    "task": (small, {"tasks": [5]}, ValueError, r"must lie in \[0, 5\)"),
    "float-task": (small, {"tasks": [1.5]}, TypeError, "must be an integer"),
    "negative-task": (small, {"tasks": [-1]}, ValueError, "must lie in"),
    "endpoints": (
        small,
        {"format": "onnx", "path": "m.onnx", "tasks": [1]},
        ValueError,
        "more than one endpoint",
    ),
    "infer": (
        lambda: with_layer(keras.layers.Dense(2)),
        {"infer_task": True},
        ValueError,
        "more than one task",
    ),
    "tasks": (
        lambda: with_layer(keras.layers.Dense(2)),
        {"tasks": [0]},
        ValueError,
        "must have an input 'task'",
    ),
    "custom-function": (
        lambda: with_layer(keras.layers.Dense(2, activation=draw)),
        {},
        ValueError,
        "Register other functions.* with draw",
    ),
    "custom-global": (
        lambda: with_layer(unpicklable()),
        {},
        ValueError,
        "with Locked. The error was: cannot pickle",
    ),
    "lambda": (
        lambda: with_layer(keras.layers.Lambda(lambda x: x)),
        {},
        ValueError,
        "a lambda",
    ),
    "batch": (
        lambda: with_layer(keras.layers.Dense(2), shape=(3, 4)),
        {},
        ValueError,
        "batches of any size",
    ),
    "path-type": (small, {"path": 3}, TypeError, "`path` must be a path"),
    "no-path": (small, {"path": ""}, TypeError, "`path` must be a path"),
    "format-type": (small, {"format": None}, ValueError, "Unknown format"),
    "tasks-type": (small, {"tasks": 3}, TypeError, "`tasks` must be a list"),
    "tasks-text": (small, {"tasks": "3"}, TypeError, "`tasks` must be a list"),
    "boolean-task": (small, {"tasks": [True]}, TypeError, "must be an integer"),
    "nested-tasks": (small, {"tasks": [[1]]}, TypeError, "must be an integer"),
    "overwrite": (small, {"overwrite": "no"}, TypeError, "`overwrite` must be a bool"),
    "infer-type": (small, {"infer_task": 1}, TypeError, "`infer_task` must be a bool"),
    "logits": (small, {"from_logits": None}, TypeError, "`from_logits` must be a bool"),
    "data": (small, {"data": np.ones((2, 5))}, ValueError, "takes inputs .image. of"),
    "names": (
        lambda: keras.Model(x := keras.Input((2,)), {"a": [2 * x, x], "a_0": 3 * x}),
        {},
        ValueError,
        "names that differ",
    ),
    "text": (
        lambda: keras.Model(x := keras.Input((2,), dtype="string"), x),
        {},
        ValueError,
        "must be numbers",
    ),
    "subclassed": (Subclassed, {}, ValueError, "must be functional"),
    "no-model": (lambda: 3, {}, TypeError, "must be a Keras model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, monkeypatch):
    make, arguments, error, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        keras_psp.export(**{"model": make(), "path": "model", **arguments})
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    model = small()
    for name, format in (
        ("model.onnx", "onnx"),
        ("model.onnx.json", "onnx"),
        ("model.bin", "openvino"),
        ("model", "tf_saved_model"),
    ):
        (tmp_path / name).write_text("mine")
        path = tmp_path / {"openvino": "model.xml", "onnx": "model.onnx"}.get(
            format, "model"
        )
        with pytest.raises(FileExistsError, match="already"):
            keras_psp.export(model, path, format)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("mine")
    with pytest.raises(FileExistsError, match="is no model"):
        keras_psp.export(model, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").read_text() == "mine"


def test_missing_package_is_named(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("tf2onnx", "onnxruntime") else found(name),
    )
    with pytest.raises(ImportError, match="pip install tf2onnx onnxruntime$"):
        keras_psp.export(small(), tmp_path / "model.onnx", "onnx")
    assert os.listdir(tmp_path) == []


def test_what_differs_is_left_out():
    model = small()
    check = Check(model, ["output_0"])
    exact = {name: value.copy() for name, value in check.answers.items()}
    assert check.difference(exact) == 0
    number = next(name for name, value in exact.items() if np.isnan(value).any())
    for wrong in (
        exact[number] + np.float32(0.1),
        np.nan_to_num(exact[number]),
        np.full_like(exact[number], np.nan),
        exact[number].astype("float64"),
        exact[number][:, :2],
    ):
        assert check.difference({**exact, number: wrong}) > 0.05
    del exact[number]
    assert check.difference(exact) == np.inf


def test_inputs_that_are_given_are_compared():
    check = Check(small(), ["output_0"], data={"image": np.full((3, 4), 7.0)})
    given = [x for name, x in check.requests.items() if name.endswith("/image")]
    assert {len(x) for x in given} == {1, 7, 64}
    assert all(x.dtype == "float32" and (x == 7).all() for x in given)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="cannot be written with `format"):
        keras_psp.export(small(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_difference_leaves_nothing(tmp_path, monkeypatch):
    module = sys.modules["keras_psp.exporting.export"]
    monkeypatch.setattr(module, "run_python", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        Check, "run", lambda check, *_: {k: v + 2e-5 for k, v in check.answers.items()}
    )
    model = with_layer(keras.layers.Dense(2, kernel_initializer="zeros"))
    with pytest.raises(ValueError, match="differs by 2e-05, which is more than 1e-05"):
        keras_psp.export(model, tmp_path / "model.onnx", "onnx")
    assert os.listdir(tmp_path) == []


def test_a_move_that_fails_puts_the_old_files_back(tmp_path, monkeypatch):
    module = sys.modules["keras_psp.exporting.export"]
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        for name in ("model.xml", "model.bin", "model.xml.json"):
            (folder / name).write_text(f"{folder.name} {name}")
    replace, calls = os.replace, []

    def fail_at_last(source, target):
        calls.append(source)
        if len(calls) == 3:
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_last)
    with pytest.raises(OSError, match="No space"):
        module._move(new, old / "model.xml")
    assert {f.name: f.read_text() for f in old.iterdir()} == {
        name: f"old {name}" for name in ("model.xml", "model.bin", "model.xml.json")
    }


def test_integers_of_unknown_tasks_are_the_lowest():
    task = keras.Input((), dtype="int32", name="task")
    image = keras.Input((4,), name="image")
    logits = PSPDense(3, NUM_TASKS)(image, task)
    model = TaskModel(
        {"image": image, "task": task},
        {
            "label": keras.ops.argmax(logits, axis=-1),
            "logits": logits,
            "spectrum": keras.ops.multiply(keras.ops.cast(logits, "complex64"), 1j),
        },
    )
    names = ["label", "logits", "spectrum"]
    check = Check(model, names)
    exact = {name: value.copy() for name, value in check.answers.items()}
    assert check.differences(exact) == dict.fromkeys(names, 0)
    number = next(k for k, v in exact.items() if "label" in k and (v < 0).any())
    assert check.answers[number].min() == np.iinfo(check.answers[number].dtype).min
    exact[number][exact[number] < 0] = 1
    assert check.differences(exact) == {"label": np.inf, "logits": 0, "spectrum": 0}
    other = {k: v.conj() for k, v in check.answers.items()}
    assert check.differences(other)["spectrum"] > 0.1  # All of it is imaginary.


def _attend(x):
    rows = keras.layers.Reshape((3, 1))(x)
    return keras.layers.MultiHeadAttention(1, 2)(rows, rows)


OUTPUTS = {
    "one": (lambda a, b: a, ["output_0"]),
    "list": (lambda a, b: [b, a], ["output_0", "output_1"]),
    "dict": (lambda a, b: {"price": a, "churn": b}, ["churn", "price"]),
    "nested": (lambda a, b: {"z": [b, a], "y": b}, ["y", "z_0", "z_1"]),
    "lists": (lambda a, b: [[b, a], a], ["output_0_0", "output_0_1", "output_1"]),
    # Formats may sort `_10` before `_2`; OpenVINO returns more than these.
    "many": (
        lambda a, b: [_attend(b), *(keras.layers.Rescaling(i)(a) for i in range(12))],
        [f"output_{i}" for i in range(13)],
    ),
}
IN_PROCESS = {
    "jax": (),
    "tensorflow": ("tf_saved_model", "onnx", "litert", "openvino"),
    "torch": ("torch",),
}


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # Keras'.
@pytest.mark.parametrize(
    "outputs, format",
    [
        (outputs, format)
        for number, outputs in enumerate(OUTPUTS)
        for i, format in enumerate(IN_PROCESS[BACKEND])
        # The longest with every format, each other with one.
        if outputs == "many" or i == number % len(IN_PROCESS[BACKEND])
    ],
)
def test_outputs_keep_the_names_on_the_card(outputs, format, tmp_path):
    structure, names = OUTPUTS[outputs]
    image = keras.Input((4,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    a, b = PSPDense(2, NUM_TASKS)(image, task), keras.layers.Dense(3)(image)
    model = TaskModel({"image": image, "task": task}, structure(a, b))
    assert _output_names(model) == names
    card = describe(model, format, names, ["serve"])
    path = str(tmp_path / f"model{FORMATS[format].suffix}")
    write(model, path, format, names)
    x = draw(model, 5)
    found = run_artifact.load(path)("serve", x)
    assert sorted(found) == sorted(card["outputs"])
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    for name, value in zip(names, expected, strict=True):
        assert list(value.shape[1:]) == card["outputs"][name]["shape"][1:]
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.once
def test_a_saved_model_holds_its_weights_once(tmp_path):
    """Keras' own export writes them twice (3.15.1)."""
    model = keras_psp.models.mlp((64,), 10, num_tasks=2, units=256, depth=1)
    keras_psp.export(model, tmp_path / "model")
    written = sum(
        path.stat().st_size for path in (tmp_path / "model" / "variables").iterdir()
    )
    assert written < 1.2 * keras_psp.diagnostics.memory(model).total


PACKED = [f for f in IN_PROCESS[BACKEND] if f in ("onnx", "litert", "openvino")]


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # Keras'.
@pytest.mark.parametrize("format", PACKED)
def test_few_bits_stay_few_in_the_file(format, tmp_path):
    """Converters would compute floats of them, which are eight times as large."""
    inputs = keras.Input((256,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    options = {"base": True, "core": 8, "rank": 2, "bits": 4}
    layer = PSPDense(512, NUM_TASKS, context=None, bias_per_task=True, **options)
    model = TaskModel({"x": inputs, "task": task}, layer(inputs, task))
    memory, sizes = keras_psp.diagnostics.memory(model).total, {}
    for unpack in (False, True):
        path = tmp_path / f"{unpack}{FORMATS[format].suffix}"
        write(model, str(path), format, ["output_0"], unpack=unpack)
        # The graph, which OpenVINO writes apart, is as large for a larger model.
        weights = path.with_suffix(".bin") if format == "openvino" else path
        sizes[unpack] = weights.stat().st_size
    assert sizes[False] < 1.01 * memory + (format != "openvino") * 60_000
    assert sizes[True] > 3 * memory
