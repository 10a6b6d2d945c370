import keras
import numpy as np
import pytest
import small_models
from conftest import once

import keras_psp
from keras_psp import contexts
from keras_psp.models import mlp
from keras_psp.models import resnet18

NUM_TASKS = 3


def builders():
    for family in contexts.FAMILIES:
        yield f"mlp-{family}", lambda f=family: mlp((4, 4), 3, NUM_TASKS, 8, 2, f)
    heads = {"head": "multi"}, {"head": "shared"}, {"complex_valued": True}
    for options in (*heads, {"soft": True}):
        name = "-".join(map(str, options))
        context = "complex" if "complex_valued" in options else "binary"
        yield (
            f"mlp-{name}-{options.get('head')}",
            lambda o=options, c=context: mlp((4, 4), 3, NUM_TASKS, 8, 2, c, **o),
        )
    shape = (16, 16, 3)  # In the end 2 x 2: to normalize one number leaves nothing.
    for options in (
        {"context": "rotation", "norm": "task"},
        {"context_over": "channels", "norm": "shared", "head": "multi"},
        {"context": None, "norm": "group", "head": "multi"},
    ):
        yield (
            f"resnet-{options['norm']}",
            lambda o=options: resnet18(shape, 3, NUM_TASKS, width=0.0625, **o),
        )


BUILDERS = dict(builders())


@pytest.mark.parametrize(
    "name",
    [
        once(name) if name in ("resnet-shared", "resnet-group", "resnet-task") else name
        for name in BUILDERS
    ],
)
def test_a_task_alone_answers_as_in_the_model(name):
    model = BUILDERS[name]()
    rng = np.random.default_rng(0)
    for weight in model.weights:  # The tasks' own rows are alike at first.
        if "contexts" not in weight.name:
            noise = rng.uniform(0.9, 1.1, size=weight.shape)
            weight.assign(keras.ops.convert_to_numpy(weight) * noise + 0.01)
    x = rng.normal(size=(4, *model.input["image"].shape[1:])).astype("float32")
    task = np.full(4, 2, "int32")
    if "soft" in name:
        task = np.eye(NUM_TASKS, dtype="float32")[task]
    expected = small_models.call(model, {"image": x, "task": task})
    plain = keras_psp.extract(model, 2)
    y = small_models.call(plain, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert not [
        layer for layer in plain.layers if "keras_psp" in type(layer).__module__
    ]
    assert plain.name == model.name


def test_the_file_needs_no_keras_psp(tmp_path):
    model = mlp((4, 4), 3, NUM_TASKS, 8)
    keras_psp.extract(model, 1).save(tmp_path / "plain.keras")
    keras.models.load_model(tmp_path / "plain.keras")
    import zipfile

    with zipfile.ZipFile(tmp_path / "plain.keras") as file:
        assert b"keras_psp" not in file.read("config.json")


def test_a_task_of_its_own_is_refused():
    x = keras.Input((4,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    for other in (1, 1 - task):
        y = keras_psp.layers.PSPDense(3, num_tasks=2, name="psp")(x, other)
        model = keras_psp.models.TaskModel({"x": x, "task": task}, y)
        with pytest.raises(ValueError, match="other than the model's own.*'psp'"):
            keras_psp.extract(model, 0)


def test_bad_input():
    model = mlp((4, 4), 3, NUM_TASKS, 8)
    with pytest.raises(ValueError, match=rf"\[0, {NUM_TASKS}\).*task=3"):
        keras_psp.extract(model, 3)
    for task in (1.0, [1], None):
        with pytest.raises(TypeError, match="`task` must be an integer"):
            keras_psp.extract(model, task)
    with pytest.raises(TypeError, match="must be a `TaskModel`"):
        keras_psp.extract(small_models.sequential(), 0)
    x, task = model.input["image"], model.input["task"]
    no_task = keras_psp.models.TaskModel(
        {"image": x, "task": task}, keras.layers.Flatten()(x), name="no_task"
    )
    with pytest.raises(ValueError, match="No layer of 'no_task' takes a task"):
        keras_psp.extract(no_task, 0)
    model.get_layer("dense_1").quantize("int8")
    with pytest.raises(ValueError, match="quantization.*'dense_1', a PSPDense"):
        keras_psp.extract(model, 0)
