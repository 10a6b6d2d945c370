import pytest
import tensorflow as tf
from conftest import BACKEND

from keras_psp.datasets._tensorflow import import_tensorflow

needs_another = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow keeps its GPUs where it computes"
)


@needs_another
def test_gpus_are_left_to_the_backend(monkeypatch):
    hidden = []
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: hidden.append(a))
    assert import_tensorflow() is tf
    assert hidden == [([], "GPU")]


@needs_another
def test_gpus_in_use_are_told(monkeypatch):
    def fail(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after initialization")

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config, "set_visible_devices", fail)
    with pytest.warns(UserWarning, match="Load the datasets first"):
        import_tensorflow()
