"""A sequence of tasks as tf.data pipelines."""

from collections.abc import Callable
from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from keras_psp.contexts.task_index import check_num_tasks
from keras_psp.contexts.task_index import check_task
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import Source

if TYPE_CHECKING:
    import tensorflow as tf


class TaskSequence:
    """Tasks made of one source: of all or some of its images, and a transform of them.

    All pipelines work on whole batches and are a function of `seed` alone. Elements
    are `({"image": float32, "task": int32}, label int32)`, images scaled as the source
    says.

    Args:
        source: A `Source`.
        num_tasks: Positive integer, the number of tasks.
        transform: Function of images `(batch, ...)` and a scalar int32 task; returns
            the images as that task has them. Runs inside the pipeline.
        seed: Non-negative integer, of the order in which `stream()` draws examples,
            and of `augment`.
        bounds: Which examples are a task's: a pair, for training and testing, of
            integer arrays `(num_tasks + 1,)`; task k has those from `bounds[k]` to
            before `bounds[k + 1]`. Defaults to all, for every task.
        augment: Function of scaled images and a seed, an int32 tensor of shape `(2,)`,
            that `stream()` applies; returns as many images of the same shape.

    Example:

    >>> from keras_psp import datasets
    >>> tasks = datasets.permuted("digits", num_tasks=3)
    >>> inputs, labels = next(iter(tasks.stream(steps_per_task=10, batch_size=16)))
    >>> inputs["image"].shape, inputs["task"].shape, labels.shape
    (TensorShape([16, 8, 8, 1]), TensorShape([16]), TensorShape([16]))
    """

    def __init__(
        self,
        source: Source,
        num_tasks: int,
        transform: Callable,
        seed: int = 0,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        augment: Callable | None = None,
    ):
        self.source = source
        self.num_tasks = check_num_tasks(num_tasks)
        self.seed = seed
        self._transform = transform
        self._augment = augment
        self._tf = tf = import_tensorflow()
        self._train, self._test = (
            _Split(tf, x, y, num_tasks, bounds and bounds[i])
            for i, (x, y) in enumerate(
                ((source.x_train, source.y_train), (source.x_test, source.y_test))
            )
        )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.source.image_shape

    @property
    def num_classes(self) -> int:
        """The number of classes of every task."""
        return self.source.num_classes

    @property
    def examples(self) -> dict[str, list[list[int]]]:
        """How many examples each class of each task has: `"train"` and `"test"`."""
        return {
            "train": self._train.count(self.num_classes),
            "test": self._test.count(self.num_classes),
        }

    def train(self, task: int, batch_size: int | None = None) -> "tf.data.Dataset":
        """Returns the training examples of one task, in the source's order.

        Args:
            task: Integer in `[0, num_tasks)`.
            batch_size: Positive integer, or `None` for single examples.

        Raises:
            TypeError: `task` is not an integer.
            ValueError: `task` or `batch_size` is out of range.
        """
        return self._ordered(self._train, [task], batch_size)

    def test(self, task: int, batch_size: int | None = None) -> "tf.data.Dataset":
        """Returns the test examples of one task; arguments as for `train()`."""
        return self._ordered(self._test, [task], batch_size)

    def test_all(self, tasks: Iterable[int], batch_size: int) -> "tf.data.Dataset":
        """Returns the test examples of several tasks in one dataset.

        Args:
            tasks: Integers in `[0, num_tasks)`.
            batch_size: Positive integer.

        Returns:
            A dataset as `test()` gives, but that its labels are `(batch, 2)`: label and
            task, as `keras_psp.benchmarks.TaskAccuracy` takes them.
        """
        dataset = self._ordered(self._test, tasks, batch_size)
        stack = self._tf.stack
        return dataset.map(lambda x, y: (x, stack([y, x["task"]], axis=-1)))

    def stream(self, steps_per_task: int, batch_size: int) -> "tf.data.Dataset":
        """Returns one task after the other, in shuffled batches.

        Every pass over the source is shuffled anew and gives whole batches only.

        Args:
            steps_per_task: Positive integer, the number of batches of each task.
            batch_size: Positive integer, at most the number of training examples.

        Returns:
            A dataset of `num_tasks * steps_per_task` batches.

        Raises:
            ValueError: One of the arguments is out of range.
        """
        tf = self._tf
        _check_positive("steps_per_task", steps_per_task)
        _check_positive("batch_size", batch_size)
        fewest = int(self._train.sizes.min())
        if batch_size > fewest:
            raise ValueError(
                f"`batch_size` must be at most {fewest}, the number of training "
                f"examples of a task. Received: batch_size={batch_size}"
            )
        starts, stops = tf.constant(self._train.starts), tf.constant(self._train.stops)

        def one_task(task):
            examples = tf.range(starts[task], stops[task])
            per_pass = tf.size(examples) // batch_size
            passes = -(-steps_per_task // per_pass)

            def one_pass(number):
                order = tf.random.experimental.stateless_shuffle(
                    examples, seed=tf.stack([self.seed, number])
                )
                order = order[: per_pass * batch_size]
                batches = tf.reshape(order, (per_pass, batch_size))
                return tf.data.Dataset.from_tensor_slices(batches)

            numbers = tf.range(task * passes, (task + 1) * passes)
            batches = tf.data.Dataset.from_tensor_slices(numbers).flat_map(one_pass)
            batches = batches.take(steps_per_task)
            return batches.map(lambda indices: (task, indices))

        dataset = tf.data.Dataset.from_tensor_slices(tf.range(self.num_tasks))
        dataset = self._gather(dataset.flat_map(one_task), self._train, self._augment)
        return dataset.apply(
            tf.data.experimental.assert_cardinality(self.num_tasks * steps_per_task)
        )

    def _ordered(self, split, tasks, batch_size):
        tf = self._tf
        tasks = [check_task(task, self.num_tasks) for task in tasks]
        if batch_size is not None:
            _check_positive("batch_size", batch_size)
        starts, stops = (
            tf.constant(ends, tf.int64) for ends in (split.starts, split.stops)
        )

        # A batch is of one task: one permutation serves all its images.
        def one_task(task):
            examples = tf.data.Dataset.range(
                starts[task], stops[task], output_type=tf.int32
            )
            batches = examples.batch(batch_size or 256)
            return batches.map(lambda indices: (task, indices))

        pairs = tf.data.Dataset.from_tensor_slices(tf.constant(tasks, tf.int32))
        dataset = self._gather(pairs.flat_map(one_task), split)
        sizes = split.sizes[np.array(tasks, dtype=int)]
        if batch_size is None:
            dataset = dataset.unbatch()
        else:
            sizes = -(-sizes // batch_size)
        return dataset.apply(tf.data.experimental.assert_cardinality(int(sizes.sum())))

    def _gather(self, pairs, split, augment=None):
        """Maps `(task, indices)` to batches."""
        tf = self._tf
        x, y = split.x, split.y
        unit = 255 if x.dtype == tf.uint8 else 1
        offset, scale = unit * self.source.mean, unit * self.source.std

        def gather(number, pair):
            task, indices = pair
            images = tf.cast(tf.gather(x, indices), tf.float32)
            images = (images - offset) / scale
            if augment is not None:
                seed = tf.stack([self.seed, tf.cast(number, tf.int32)])
                images = augment(images, seed)
            images = tf.ensure_shape(
                self._transform(images, task), [indices.shape[0], *self.image_shape]
            )
            tasks = tf.fill(tf.shape(indices), task)
            return {"image": images, "task": tasks}, tf.gather(y, indices)

        batches = pairs.enumerate().map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)


class _Split:
    """Examples in memory, and where each task's begin and end."""

    def __init__(self, tf, x, y, num_tasks, bounds):
        if bounds is None:
            self.starts = np.zeros(num_tasks, "int32")
            self.stops = np.full(num_tasks, len(x), "int32")
        else:
            bounds = np.asarray(bounds, "int32")
            self.starts, self.stops = bounds[:-1], bounds[1:]
        with tf.device("CPU"):
            self.x, self.y = tf.constant(x), tf.constant(y)

    @property
    def sizes(self):
        return self.stops - self.starts

    def count(self, num_classes):
        y = self.y.numpy()
        return [
            np.bincount(y[start:stop], minlength=num_classes).tolist()
            for start, stop in zip(self.starts, self.stops, strict=True)
        ]


def _check_positive(name, value):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
