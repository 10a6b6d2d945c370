"""What earlier releases have written, on every backend, is read and answered alike.

`golden/write.py` has written it, and says what there is.
"""

import importlib
import json
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import BACKEND
from golden import write as golden

import keras_psp

FOLDER = Path(__file__).parent / "golden"
RELEASES = sorted(path.parent for path in FOLDER.glob("*/public_names.json"))
BACKENDS = ("jax", "tensorflow", "torch")


# Each backend reads its own files and those of one other; torch, whose tests take
# least, reads them all.
READ = {"jax": "jax torch", "tensorflow": "tensorflow jax", "torch": " ".join(BACKENDS)}


def find(pattern):
    """The files that a backend reads, of all releases, as parameters."""
    return [
        pytest.param(path, id=str(path.relative_to(FOLDER)))
        for release in RELEASES
        for backend in READ[BACKEND].split()
        for path in sorted(release.glob(f"{backend}/{pattern}"))
    ]


def compare(found, expected, tolerance=1e-5):
    assert {*found} == {*expected}
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_every_backend_has_written(release):
    for backend in BACKENDS:
        folder = release / backend
        for pattern in (
            *("*.keras", "*.weights.h5", "consolidation/*.keras", "cards/*.json"),
            *("benchmarks/*/progress.json", "benchmarks/*/result.json"),
        ):
            assert [*folder.glob(pattern)], f"{folder}/{pattern}"
        # Nothing is there without its answers, nor answers without a model.
        stems = {path.name.split(".")[0] for path in folder.glob("*.npz")}
        models = [*folder.glob("*.keras"), *folder.glob("*.weights.h5")]
        assert stems == {path.name.split(".")[0] for path in models}


@pytest.mark.parametrize("path", find("*.keras"))
def test_models(path):
    model = keras.saving.load_model(path)
    inputs, answers = golden.load_arrays(path.with_suffix(".npz"))
    compare(golden.answer(model, inputs), answers)


@keras.saving.register_keras_serializable(package="keras_psp_tests")
class Tokens(keras.layers.Layer):
    """The block of the model below."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.layers.Embedding(5, 3, name="table")
        self.norm = keras.layers.RMSNormalization(name="rms")

    def build(self, shape):
        self.table.build(shape)
        self.norm.build((*shape, 3))

    def call(self, x):
        return self.norm(self.table(x))


def test_copies_of_layers_that_have_counterparts_now():
    """Written before `TaskEmbedding` and `TaskRMSNormalization`, for three tasks."""
    model = keras.saving.load_model(FOLDER / "copies" / "copies.keras")
    inputs, answers = golden.load_arrays(FOLDER / "copies" / "copies.npz")
    compare(golden.answer(model, inputs), answers)
    model.add_tasks(1)
    compare(golden.answer(model, inputs), answers)
    plain = keras_psp.extract(model, 2)
    (expected,) = answers.values()
    own = inputs["task"] == 2
    y = keras.ops.convert_to_numpy(plain(inputs["x"]))
    np.testing.assert_allclose(y[own], expected[own], atol=1e-5)


@pytest.mark.parametrize("path", find("*.weights.h5"))
def test_weights(path):
    name = path.name.removesuffix(".weights.h5")
    make, _, _ = golden.MODELS[name]
    model = make()
    for weight in model.weights:  # All there is must come from the file.
        weight.assign(np.zeros(weight.shape, weight.dtype))
    model.load_weights(path)
    inputs, answers = golden.load_arrays(path.with_name(f"{name}.npz"))
    compare(golden.answer(model, inputs), answers)


@pytest.mark.parametrize("path", find("consolidation/*.keras"))
def test_consolidations_go_on(path, tmp_path):
    writer = path.parent.parent.name
    _, answers = golden.load_arrays(path.with_suffix(".npz"))
    if writer == "torch" != BACKEND:
        # The model is there as it is; Keras' torch optimizers run on torch alone.
        model = keras.saving.load_model(path, compile=False)
        found = golden.answer(model, golden.draw_inputs(model))
        compare(found, {"output": answers["output"]})
        path = with_plain_optimizers(path, tmp_path / path.name)
    model = keras.saving.load_model(path)
    # One step is not worth compiling. And JAX saves `jit_compile=True`, for which torch
    # would take a minute.
    model.run_eagerly, model.jit_compile = True, False
    found = golden.state(model)
    assert found["penalty"] > 0
    np.testing.assert_allclose(found["penalty"], answers["penalty"], rtol=1e-4)
    after = {f"{name}_after": value for name, value in golden.one_step(model).items()}
    compare({**found, **after}, answers, tolerance=1e-4)
    if writer == BACKEND:
        model.optimizer.end_task(model, golden.draw_task(2))
        assert np.isfinite(golden.one_step(model)["penalty"])


def with_plain_optimizers(path, target):
    """A copy that names Keras' optimizers, not those that it has for torch."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = re.sub(
                    rb"keras\.src\.backend\.torch\.optimizers\.\w+",
                    b"keras.optimizers",
                    content,
                )
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize("path", find("benchmarks/half"))
def test_a_run_goes_on(path, tmp_path):
    from keras_psp import benchmarks

    _, answers = golden.load_arrays(path.with_suffix(".npz"))
    folder = tmp_path / "half"
    shutil.copytree(path, folder)
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["visits"] == 1
    config = golden.small_runs()["half"]
    if progress["backend"] == BACKEND:
        result = benchmarks.run(config, folder, resume=True)
        assert [file.name for file in folder.iterdir()] == ["result.json"]
        # What was measured is kept; the rest may round otherwise elsewhere.
        matrix = result.accuracy_matrix
        np.testing.assert_array_equal(matrix[0], answers["matrix"][0])
        np.testing.assert_allclose(matrix, answers["matrix"], atol=0.02)
        return
    # A run goes on with its own backend alone; but its weights are everyone's.
    with pytest.raises(ValueError, match=f"backend='{progress['backend']}' there"):
        benchmarks.run(config, folder, resume=True)
    tasks = config.build_tasks()
    model = config.build_model(tasks)
    model.compile(config.build_optimizer(), "mse")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / progress["weights"])
    assert int(model.optimizer.iterations) == config.steps
    assert max(keras.ops.max(f) for f in model.optimizer.importances) > 0
    found = []
    for inputs, labels in tasks.test(0, batch_size=100):
        inputs = {name: value.numpy() for name, value in inputs.items()}
        logits = golden.answer(model, inputs)["output"]
        found.extend(logits.argmax(axis=-1) == labels.numpy())
    assert np.mean(found) == pytest.approx(answers["matrix"][0, 0], abs=0.01)


@pytest.mark.once
@pytest.mark.parametrize("path", find("benchmarks/*/result.json"))
def test_results(path, tmp_path):
    from keras_psp import benchmarks

    content = json.loads(path.read_text())
    result = benchmarks.RunResult.load(path)
    for name in (*result.metrics, "average_accuracy", "forgetting"):
        assert {**result.metrics}[name] == pytest.approx(content[name], abs=1e-9)
    config = benchmarks.EXPERIMENTS[result.experiment](**result.config)
    assert config == golden.small_runs()[path.parent.name]
    # A finished run is resumed by reading it.
    if result.backend == BACKEND:
        shutil.copy(path, tmp_path)
        again = benchmarks.run(config, tmp_path, resume=True)
        assert again == result
    report = benchmarks.report([path], output=tmp_path / "report")
    assert report.left_out == [] and len(report.tables) == 1
    ((row,),) = report.tables.values()
    assert f"{100 * result.average_accuracy:.1f}" in str(row)
    assert all(file.exists() for file in report.paths)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="which all export with")
def test_cards(tmp_path):
    card = keras_psp.export(golden.mlp(), tmp_path / "mlp", tasks=[1])
    for parameter in find("cards/mlp.json"):
        (path,) = parameter.values
        old = json.loads(path.read_text())
        assert {*old} <= {*card} and {*old["versions"]} <= {*card["versions"]}
        for name in (
            *("name", "num_tasks", "inputs", "outputs", "endpoints", "format"),
            "batch_sizes",
        ):
            assert card[name] == old[name], name
        assert {*card["contexts"]} == {*old["contexts"]}
        for name, config in old["contexts"].items():
            old_context = keras.saving.deserialize_keras_object(config)
            new_context = keras.saving.deserialize_keras_object(card["contexts"][name])
            assert old_context.get_config() == new_context.get_config()


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_no_public_name_is_lost(release):
    names = json.loads((release / "public_names.json").read_text())
    assert names["keras_psp"]
    for package, public in names.items():
        if package == "keras_psp.tuning":
            pytest.importorskip("keras_tuner")
        with warnings.catch_warnings():
            # A deprecated alias is a name too.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module(package)
            for name in public:
                assert hasattr(module, name), f"{package}.{name}"
