import builtins
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_psp import datasets
from keras_psp.datasets import load_source
from keras_psp.datasets import sources

# It is the same tf.data on every backend.
pytestmark = pytest.mark.once


def test_digits_are_the_real_ones():
    source = load_source("digits")
    assert source.x_train.shape == (1438, 8, 8, 1) and source.num_classes == 10
    x = np.concatenate([source.x_train, source.x_test])
    y = np.concatenate([source.y_train, source.y_test])
    from sklearn.datasets import load_digits

    digits = load_digits()
    ours = sorted(map(tuple, np.c_[x.reshape(-1, 64) * 16, y].astype(int)))
    theirs = sorted(map(tuple, np.c_[digits.data, digits.target].astype(int)))
    assert ours == theirs
    pixels = (source.x_train - source.mean) / source.std
    assert abs(pixels.mean()) < 1e-4 and abs(pixels.std() - 1) < 1e-4
    assert np.bincount(source.y_test).min() > 20


def test_pipeline_standardizes():
    tasks = datasets.permuted("digits", num_tasks=2)
    (inputs, _) = next(iter(tasks.train(1, 1438)))
    pixels = inputs["image"].numpy()
    assert abs(pixels.mean()) < 1e-4 and abs(pixels.std() - 1) < 1e-4


@pytest.mark.once
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")),
    reason="MNIST is not on this machine",
)
def test_mnist():
    source = load_source("mnist")
    assert source.x_train.shape == (60000, 28, 28, 1)
    assert source.x_train.dtype == np.uint8
    assert abs(source.mean - 0.1307) < 1e-4 and abs(source.std - 0.3081) < 1e-4


def test_arrays_are_held_out_once(rng):
    x, y = rng.normal(size=(20, 3)), np.arange(20)
    source, again = load_source((x, y)), load_source([x, y])
    assert (len(source.x_train), len(source.x_test)) == (16, 4)
    labels = np.concatenate([source.y_train, source.y_test])
    np.testing.assert_array_equal(np.sort(labels), y)
    images = np.concatenate([source.x_train, source.x_test])
    np.testing.assert_array_equal(images, x[labels].astype("float32"))
    np.testing.assert_array_equal(source.y_test, again.y_test)
    assert load_source(source) is source


X, Y = np.zeros((6, 2), "float32"), np.zeros(6, int)


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("mnits", ValueError, "'mnist'"),
        (3, TypeError, "int"),
        ((X,), TypeError, "tuple"),
        ((X, Y[:5]), ValueError, r"\(6, 2\).*\(5,\)"),
        ((X[:0], Y[:0]), ValueError, "needs images"),
        ((X[:4], Y[:4]), ValueError, "fewer than 5"),
        ((X, Y[:, None]), ValueError, r"\(6, 1\)"),
        ((X[:, 0], Y), ValueError, r"\(6,\)"),
        ((X, Y + 0.5), TypeError, "float64"),
        ((X, Y - 1), ValueError, "-1"),
        ((X.astype(int), Y), TypeError, "int64"),
        ((np.where(np.eye(6, 2) > 0, np.nan, X), Y), ValueError, "image 0"),
        ((np.where(np.eye(6, 2) > 0, np.inf, X), Y), ValueError, "image 0"),
        (((X, Y), (X[:, :1], Y)), ValueError, r"\(2,\) and \(1,\)"),
        (((X, Y), (X, Y[:3])), ValueError, "as many labels"),
    ],
)
def test_bad_sources(source, error, message):
    with pytest.raises(error, match=message):
        load_source(source)


@pytest.mark.parametrize(
    "source, package", [("digits", "sklearn"), ("mnist", "tensorflow_datasets")]
)
def test_missing_package_is_named(source, package, monkeypatch):
    _hide(monkeypatch, package)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "keras-psp\[data\]"'):
        load_source(source)


def test_without_a_network_the_way_out_is_named(monkeypatch, tmp_path):
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=tmp_path))
    monkeypatch.setattr(sources, "_HOSTS", {"mnist": "http://127.0.0.1:9"})
    with pytest.raises(ConnectionError, match='TFDS_DATA_DIR.*source "digits"'):
        load_source("mnist")


def test_missing_tensorflow_is_named(monkeypatch):
    _hide(monkeypatch, "tensorflow")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "keras-psp\[data\]"'):
        datasets.permuted("digits", num_tasks=2)


def _hide(monkeypatch, package):
    """Makes a package look as if it were not installed."""
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", fake)
