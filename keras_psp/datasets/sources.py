"""Sources of the task sequences: labelled images, all of them in memory."""

import dataclasses
import functools
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_psp._core.checks import check_name

# Where tensorflow-datasets downloads them from.
_HOSTS = {
    "mnist": "https://storage.googleapis.com",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "cifar10": "https://www.cs.toronto.edu",
    "cifar100": "https://www.cs.toronto.edu",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images, split for training and testing.

    Attributes:
        name: The name in results.
        x_train: Training images `(n, ...)`: float32, or uint8, where 255 stands for 1.
        y_train: Training labels, int32 `(n,)`, counted from 0.
        x_test: Test images, like `x_train`.
        y_test: Test labels, like `y_train`.
        mean: Number to subtract from the images; in [0, 1] if they are uint8.
        std: Number by which the difference is divided.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: float = 0.0
    std: float = 1.0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.x_train.shape[1:]

    @property
    def num_classes(self) -> int:
        """The number of classes, the largest label plus one."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


# A name; arrays (x, y) or ((x, y), (x, y)); or a source.
SourceLike = str | Sequence | Source


def load_source(source: SourceLike) -> Source:
    """Loads a source by name, or checks your own arrays.

    Args:
        source: `"digits"` (1797 images of 8x8, part of scikit-learn), `"mnist"`,
            `"fashion_mnist"`, `"cifar10"` or `"cifar100"` (from tensorflow-datasets,
            which looks in `TFDS_DATA_DIR` and downloads what is missing); arrays
            `(x, y)`, of which a fifth is held out for testing; `((x_train, y_train),
            (x_test, y_test))`, as `keras.datasets` returns them; or a `Source`. Named
            sources are standardized to mean 0 and variance 1. Arrays are used as they
            are, except that uint8 is divided by 255.

    Returns:
        A `Source`.

    Raises:
        TypeError: Arrays of another dtype, or another type than the above.
        ValueError: Unknown name; arrays that are empty, of unequal length, not finite,
            or of different shapes for training and testing; negative labels.

    Example:

    >>> from keras_psp import datasets
    >>> datasets.load_source("digits").x_train.shape
    (1438, 8, 8, 1)
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, str):
        return SOURCES[check_name("source", source, SOURCES)]()
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise TypeError(
            "A source must be a name, arrays (x, y), or ((x_train, y_train), "
            f"(x_test, y_test)). Received: {type(source).__name__}"
        )
    if all(isinstance(part, (tuple, list)) and len(part) == 2 for part in source):
        train, test = _check(*source[0]), _check(*source[1])
        if train[0].shape[1:] != test[0].shape[1:]:
            raise ValueError(
                "Training and test images must have one shape. Received: "
                f"{train[0].shape[1:]} and {test[0].shape[1:]}"
            )
        return Source("arrays", *train, *test)
    return _hold_out("arrays", *_check(*source))


def _check(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            "A source needs images of shape (n, ...) and as many labels of shape (n,). "
            f"Received: images of shape {x.shape}, labels of shape {y.shape}"
        )
    if not x.size:
        raise ValueError(f"A source needs images. Received: shape {x.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"Labels must be integers. Received: dtype {y.dtype}")
    if y.min() < 0:
        raise ValueError(f"Labels must not be negative. Received: {y.min()}")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise TypeError(f"Images must be uint8 or floats. Received: {x.dtype}")
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
            raise ValueError(
                f"Images must be finite. Received: NaN or infinity in image {bad[0]}"
            )
        x = x.astype("float32")
    return x, y.astype("int32")


def _hold_out(name: str, x: np.ndarray, y: np.ndarray) -> Source:
    """Holds a fifth of the images out for testing, after one fixed shuffle."""
    if len(x) < 5:
        raise ValueError(
            "A source of fewer than 5 images cannot be split. Give it as ((x_train, "
            f"y_train), (x_test, y_test)). Received: {len(x)} images"
        )
    order = np.argsort(np.random.PCG64(0).random_raw(len(x)), kind="stable")
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    return Source(name, x[train], y[train], x[test], y[test])


def _load_digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'The source "digits" is part of scikit-learn. Install it with: '
            'pip install "keras-psp[data]"'
        ) from error
    digits = load_digits()
    x = (digits.images[..., None] / 16).astype("float32")
    return _hold_out("digits", x, digits.target.astype("int32"))


def _load_tfds(name: str) -> Source:
    from keras_psp.datasets._tensorflow import import_tensorflow

    import_tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'The source "{name}" comes from tensorflow-datasets. Install it with: '
            'pip install "keras-psp[data]"'
        ) from error
    folder = tfds.builder(name).data_dir
    if not os.path.exists(folder):
        _check_connection(name, folder)
    options = dict(split=["train", "test"], batch_size=-1, as_supervised=True)
    (x_train, y_train), (x_test, y_test) = tfds.as_numpy(tfds.load(name, **options))
    return Source(name, *_check(x_train, y_train), *_check(x_test, y_test))


def _check_connection(name: str, folder: str) -> None:
    """Raises at once where a download would be tried again for minutes."""
    try:
        urllib.request.urlopen(_HOSTS[name], timeout=5).close()
    except urllib.error.HTTPError:
        pass  # It answers.
    except OSError as error:
        raise ConnectionError(
            f'The source "{name}" is not in {folder!r} and cannot be downloaded: '
            f"{_HOSTS[name]} does not answer ({error}). Set TFDS_DATA_DIR to a folder "
            f'that holds "{name}", or use the source "digits", which comes with '
            f"scikit-learn. Received: source={name!r}"
        ) from error


def _standardize(load: Callable[..., Source], *args: str) -> Source:
    """As in the authors' code: mean 0 and variance 1 over all training pixels."""
    loaded = load(*args)
    unit = 255 if loaded.x_train.dtype == np.uint8 else 1
    mean, std = loaded.x_train.mean() / unit, loaded.x_train.std() / unit
    return dataclasses.replace(loaded, mean=float(mean), std=float(std))


# What loads each; `keras_psp.benchmarks.register` adds to them.
SOURCES: dict[str, Callable[[], Source]] = {
    "digits": functools.partial(_standardize, _load_digits),
    **{name: functools.partial(_standardize, _load_tfds, name) for name in _HOSTS},
}
