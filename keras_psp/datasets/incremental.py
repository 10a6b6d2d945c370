"""Incremental tasks: every task has its own classes."""

import dataclasses
from typing import Any

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import Source
from keras_psp.datasets.sources import SourceLike
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence
from keras_psp.datasets.task_sequence import check_seed

SHIFT = 4  # Pixels by which CIFAR's images are shifted, since He et al., 2016.


def incremental(
    *sources: SourceLike,
    classes_per_task: int = 10,
    num_tasks: int | None = None,
    augment: bool = False,
    seed: int = 0,
) -> TaskSequence:
    """Returns tasks of `classes_per_task` classes each, whose labels begin at 0.

    Task k has the classes from `k * classes_per_task` on. They come from the first
    source as long as it has them, then from the next one. So `incremental("cifar10",
    "cifar100")` is the sequence of the paper: the ten classes of CIFAR-10, then classes
    10 to 19, 20 to 29 and so on of CIFAR-100. Classes that do not fill a task are left
    out.

    Images of named sources, and uint8 images, are scaled to [-1, 1] as in the authors'
    code. Other arrays are used as they are.

    Args:
        *sources: Names, arrays or `Source`s: see `keras_psp.datasets.load_source`.
            Defaults to `"cifar10", "cifar100"`.
        classes_per_task: Positive integer.
        num_tasks: Positive integer. Defaults to the number of tasks that the classes
            fill.
        augment: Boolean, whether `stream()` flips images at random from left to right
            and shifts them by up to 4 pixels, filling with -1 (black).
        seed: Non-negative integer below 2**31. Equal seeds give an equal order of the
            examples and an equal augmentation.

    Returns:
        A `TaskSequence`; its `examples` has the number of images of each class.

    Raises:
        TypeError: An argument of another type, or one that `load_source()` refuses.
        ValueError: A class without images, which is named; sources whose images differ
            in shape, dtype or scale.

    Example:

    >>> from keras_psp import datasets
    >>> tasks = datasets.incremental("digits", classes_per_task=2)
    >>> tasks.num_tasks, tasks.num_classes
    (5, 2)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.3.
    """
    classes_per_task = check_integer("classes_per_task", classes_per_task)
    seed = check_seed(seed)
    if num_tasks is not None:
        num_tasks = check_integer("num_tasks", num_tasks)
    loaded = [_load(source) for source in sources or ("cifar10", "cifar100")]
    for source in loaded[1:]:
        _check_alike(loaded[0], source)
    parts: list[dict[str, np.ndarray]] = []
    names: list[str] = []
    for source in loaded:
        available = source.num_classes // classes_per_task
        stop = available if num_tasks is None else min(available, num_tasks)
        for task in range(len(parts), stop):
            parts.append(_take(source, task * classes_per_task, classes_per_task))
            names.append(source.name)
    wanted = num_tasks or len(parts) or 1
    if len(parts) < wanted:
        missing = max(loaded[-1].num_classes, len(parts) * classes_per_task)
        raise ValueError(
            f"Class {missing} of {loaded[-1].name} has no images. Received: "
            f"num_tasks={num_tasks}, classes_per_task={classes_per_task}, and classes "
            f"for {len(parts)} tasks"
        )
    arrays: dict[str, Any] = {
        field: np.concatenate([part[field] for part in parts]) for field in parts[0]
    }
    source = dataclasses.replace(
        loaded[0], name="+".join(dict.fromkeys(names)), **arrays
    )
    train, test = (
        np.cumsum([0, *(len(part[field]) for part in parts)])
        for field in ("y_train", "y_test")
    )
    return TaskSequence(
        source,
        len(parts),
        lambda images, task, moments: images,
        seed=seed,
        bounds=(train, test),
        augment=_flip_and_shift if augment else None,
    )


def _load(source: SourceLike) -> Source:
    loaded = load_source(source)
    if isinstance(source, str) or (
        loaded.x_train.dtype == np.uint8 and not isinstance(source, Source)
    ):
        return dataclasses.replace(loaded, mean=0.5, std=0.5)
    return loaded


def _check_alike(first: Source, other: Source) -> None:
    def describe(source):
        return (
            f"{source.name} with {source.image_shape} {source.x_train.dtype}, "
            f"mean={source.mean}, std={source.std}"
        )

    if describe(first).split(" with ")[1] != describe(other).split(" with ")[1]:
        raise ValueError(
            "The images of all sources must have one shape, dtype and scale. "
            f"Received: {describe(first)}; {describe(other)}"
        )


def _take(source: Source, first: int, number: int) -> dict[str, np.ndarray]:
    """Returns the images of some classes, and their labels counted from 0."""
    part = {}
    for split, what in (("train", "training"), ("test", "test")):
        x, y = getattr(source, f"x_{split}"), getattr(source, f"y_{split}")
        rows = np.flatnonzero((y >= first) & (y < first + number))
        counts = np.bincount(y[rows] - first, minlength=number)
        if not counts.all():
            missing = first + int(np.argmin(counts))
            raise ValueError(f"Class {missing} of {source.name} has no {what} images.")
        part[f"x_{split}"], part[f"y_{split}"] = x[rows], y[rows] - first
    return part


def _flip_and_shift(images: Any, seed: Any) -> Any:
    tf = import_tensorflow()
    images = tf.image.stateless_random_flip_left_right(images, seed)
    batch, height, width = (tf.shape(images)[axis] for axis in range(3))
    padding = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    images = tf.pad(images, padding, constant_values=-1.0)
    corners = tf.random.stateless_uniform(
        (2, batch, 1), seed, 0, 2 * SHIFT + 1, dtype=tf.int32
    )
    images = tf.gather(images, corners[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(images, corners[1] + tf.range(width), axis=2, batch_dims=1)
