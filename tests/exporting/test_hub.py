"""A folder for the Hugging Face Hub, and `hf://` as Keras reads it."""

import json

import huggingface_hub
import keras
import numpy as np
import pytest

import keras_psp

pytestmark = pytest.mark.once


def test_a_folder_loads_as_from_the_hub(tmp_path, monkeypatch):
    model = keras_psp.models.mlp((4,), 3, num_tasks=["paris", "tokyo"], units=8)
    folder = tmp_path / "my-model"
    model.save(folder, zipped=False)
    (folder / "README.md").write_text(keras_psp.exporting.model_card(model))
    asked = []

    def download(repo_id, **options):  # There is no network: the folder itself.
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = keras.saving.load_model("hf://me/my-model")
    assert asked == ["me/my-model"]
    x = {"image": np.ones((2, 4), "float32"), "task": np.array([0, 1])}
    np.testing.assert_array_equal(
        *(each.predict(x, verbose=0) for each in (model, loaded))
    )
    assert list(loaded.task_names) == ["paris", "tokyo"]


def test_the_card_says_what_the_card_of_an_export_says():
    model = keras_psp.models.mlp((4,), 3, num_tasks=["paris", "tokyo"], units=8)
    text = keras_psp.exporting.model_card(model)
    _, metadata, body = text.split("---\n")
    assert "library_name: keras\n" in metadata
    assert "| tasks | paris, tokyo |" in body
    assert "| inputs | `image` float32 (any, 4), `task` int32 (any) |" in body
    assert "| contexts | Binary in 4 layers |" in body
    assert f"{model.count_params():,}" in body and keras_psp.__version__ in body
    assert json.dumps(text)
    text = keras_psp.exporting.model_card(model.remove_task("paris"))
    assert "| tasks | tokyo |" in text


def test_an_input_and_an_output_may_have_one_name():
    image = keras.Input((4,), name="image")
    plain = keras.Model(image, {"image": keras.layers.Dense(2)(image)})
    text = keras_psp.exporting.model_card(
        keras_psp.convert(plain, 2, context=None, rank=1)
    )
    assert "| inputs | `image` float32 (any, 4), `task` int32 (any) |" in text
    assert "| outputs | `image` float32 (any, 2) |" in text


def test_a_model_without_tasks_is_refused():
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(TypeError, match="must be a `TaskModel`"):
        keras_psp.exporting.model_card(plain)
