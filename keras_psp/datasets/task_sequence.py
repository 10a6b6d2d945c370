"""A sequence of tasks as tf.data pipelines."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_number
from keras_psp._core.task_index import check_task
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import Source

if TYPE_CHECKING:
    import tensorflow as tf


class TaskSequence:
    """Tasks made of one source: each has all or some of its images, transformed.

    All pipelines work on whole batches and depend on `seed` alone. Elements are
    `({"image": float32, "task": int32}, label int32)`; images are scaled by the
    source's `mean` and `std`.

    Each example has a moment, a number in [0, 1). In `stream()` it is the share of the
    task that is over; elsewhere the moments are spread over the examples.

    Args:
        source: A `Source`.
        num_tasks: Positive integer, the number of tasks.
        transform: Function of images `(batch, ...)`, a scalar int32 task and the
            moments, float32 `(batch,)`; returns that task's images. Runs inside the
            pipeline.
        seed: Non-negative integer below 2**31, the seed of the order in which
            `stream()` draws examples, and of `augment`.
        bounds: The examples of each task: a pair, for training and testing, of integer
            arrays `(num_tasks + 1,)`; task k has the examples from `bounds[k]` to
            before `bounds[k + 1]`. By default every task has all examples.
        augment: Function of scaled images and a seed, an int32 tensor of shape `(2,)`,
            that `stream()` applies; returns as many images of the same shape.
        cycles: Positive integer, how often `stream()` goes through the tasks.
        context: Function of a scalar int32 task, the moments and the number of the
            visit (int32, counted over all cycles); returns the model's input `task`.
            Defaults to the task itself.
        num_contexts: Positive integer, the number of tasks that a model is to hold.
            Defaults to `num_tasks`.
        soft: Boolean, whether `context` returns weights `(batch, num_contexts)`.

    Attributes:
        num_tasks, cycles, num_contexts, soft: As above.
        num_visits: `num_tasks * cycles`.

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
        cycles: int = 1,
        context: Callable | None = None,
        num_contexts: int | None = None,
        soft: bool = False,
    ):
        self.source = source
        self.num_tasks = check_integer("num_tasks", num_tasks)
        self.cycles = check_integer("cycles", cycles)
        self.num_visits = self.num_tasks * self.cycles
        self.num_contexts = num_contexts or self.num_tasks
        self.soft = soft
        self.seed = check_seed(seed)
        self._transform = transform
        self._context = context
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
        """The number of examples of each class of each task: `"train"`, `"test"`."""
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

    def test_all(
        self, tasks: Iterable[int], batch_size: int, visit: int | None = None
    ) -> "tf.data.Dataset":
        """Returns the test examples of several tasks in one dataset.

        Args:
            tasks: Integers in `[0, num_tasks)`.
            batch_size: Positive integer.
            visit: Integer, the last visit that `stream()` has made. The contexts are
                those of the latest visit to each task. Defaults to the last of all.

        Returns:
            A dataset like that of `test()`, except that its labels have shape `(batch,
            2)`: label and task, as `keras_psp.benchmarks.TaskAccuracy` takes them.
        """
        return self._ordered(self._test, tasks, batch_size, visit, with_task=True)

    def stream(
        self,
        steps_per_task: int,
        batch_size: int,
        start: int = 0,
        joint: bool = False,
    ) -> "tf.data.Dataset":
        """Returns one task after the other, in shuffled batches.

        Every pass over the source is shuffled again and has whole batches only.

        Args:
            steps_per_task: Positive integer, the number of batches of each visit to a
                task.
            batch_size: Positive integer, at most the number of training examples.
            start: Integer in `[0, num_visits)`, the visit to begin with.
            joint: Boolean, whether every batch is of a random task and its examples are
                drawn independently: an upper bound, with all tasks trained together.

        Returns:
            A dataset of `(num_visits - start) * steps_per_task` batches.

        Raises:
            ValueError: One of the arguments is out of range.
        """
        tf = self._tf
        check_integer("steps_per_task", steps_per_task)
        check_integer("batch_size", batch_size)
        if not 0 <= start < self.num_visits:
            raise ValueError(
                f"`start` must lie in [0, {self.num_visits}). Received: start={start}"
            )
        fewest = int(self._train.sizes.min())
        if batch_size > fewest:
            raise ValueError(
                f"`batch_size` must be at most {fewest}, the number of training "
                f"examples of a task. Received: batch_size={batch_size}"
            )
        starts, stops = tf.constant(self._train.starts), tf.constant(self._train.stops)

        def one_visit(visit):
            task = visit % self.num_tasks
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

            numbers = tf.range(visit * passes, (visit + 1) * passes)
            batches = tf.data.Dataset.from_tensor_slices(numbers).flat_map(one_pass)
            batches = batches.take(steps_per_task).enumerate()

            def place(step, indices):
                moment = tf.cast(step, tf.float32) / steps_per_task
                return task, visit, tf.fill((batch_size,), moment), indices

            return batches.map(place)

        def any_task(number):
            def draw(what, shape, low, high, dtype=tf.int32):
                seed = tf.random.experimental.stateless_fold_in(
                    tf.stack([self.seed, number]), what
                )
                return tf.random.stateless_uniform(shape, seed, low, high, dtype)

            task = draw(0, (), 0, self.num_tasks)
            indices = draw(1, (batch_size,), starts[task], stops[task])
            moments = draw(2, (batch_size,), 0.0, 1.0, tf.float32)
            return task, number // steps_per_task, moments, indices

        visits = tf.range(start, self.num_visits)
        if joint:
            steps = tf.range(start * steps_per_task, self.num_visits * steps_per_task)
            places = tf.data.Dataset.from_tensor_slices(steps).map(any_task)
        else:
            places = tf.data.Dataset.from_tensor_slices(visits).flat_map(one_visit)
        first = start * steps_per_task
        dataset = self._gather(places, self._train, self._augment, first)
        steps = (self.num_visits - start) * steps_per_task
        return dataset.apply(tf.data.experimental.assert_cardinality(steps))

    def _ordered(
        self,
        split: "_Split",
        tasks: Iterable[int],
        batch_size: int | None,
        visit: int | None = None,
        with_task: bool = False,
    ) -> "tf.data.Dataset":
        tf = self._tf
        tasks = [check_task(task, self.num_tasks) for task in tasks]
        if batch_size is not None:
            check_integer("batch_size", batch_size)
        visit = self.num_visits - 1 if visit is None else visit
        # The latest visit to each.
        visits = [visit - (visit - task) % self.num_tasks for task in tasks]
        starts, stops = (
            tf.constant(ends, tf.int64) for ends in (split.starts, split.stops)
        )

        # A batch is of one task: one permutation serves all its images.
        def one_task(task, visit):
            examples = tf.data.Dataset.range(
                starts[task], stops[task], output_type=tf.int32
            )
            batches = examples.batch(batch_size or 256)

            def place(indices):
                # The golden ratio spreads whatever number of examples evenly.
                moments = tf.cast(indices, tf.float64) * ((5**0.5 - 1) / 2) % 1
                return task, visit, tf.cast(moments, tf.float32), indices

            return batches.map(place)

        pairs = tf.data.Dataset.from_tensor_slices(
            (tf.constant(tasks, tf.int32), tf.constant(visits, tf.int32))
        )
        dataset = self._gather(pairs.flat_map(one_task), split, with_task=with_task)
        sizes = split.sizes[np.array(tasks, dtype=int)]
        if batch_size is None:
            dataset = dataset.unbatch()
        else:
            sizes = -(-sizes // batch_size)
        return dataset.apply(tf.data.experimental.assert_cardinality(int(sizes.sum())))

    def _gather(
        self,
        places: "tf.data.Dataset",
        split: "_Split",
        augment: Callable | None = None,
        first: int = 0,
        with_task: bool = False,
    ) -> "tf.data.Dataset":
        """Maps `(task, visit, moments, indices)` to batches."""
        tf = self._tf
        x, y = split.x, split.y
        unit = 255 if x.dtype == tf.uint8 else 1
        offset, scale = unit * self.source.mean, unit * self.source.std

        def gather(number, place):
            task, visit, moments, indices = place
            images = tf.cast(tf.gather(x, indices), tf.float32)
            images = (images - offset) / scale
            if augment is not None:
                seed = tf.stack([self.seed, tf.cast(number, tf.int32)])
                images = augment(images, seed)
            images = tf.ensure_shape(
                self._transform(images, task, moments),
                [indices.shape[0], *self.image_shape],
            )
            tasks = tf.fill(tf.shape(indices), task)
            labels = tf.gather(y, indices)
            if with_task:
                labels = tf.stack([labels, tasks], axis=-1)
            if self._context is not None:
                tasks = self._context(task, moments, visit)
            return {"image": images, "task": tasks}, labels

        batches = places.enumerate(first)
        batches = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        # Deleting an iterator waits until TensorFlow's tuner wakes up, which it does
        # after 10, 20, 40 ms and so on. An evaluation took up to twice as long.
        options = tf.data.Options()
        options.autotune.enabled = False
        return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def check_seed(seed: int) -> int:
    """Returns a seed as an `int`; raises if `tf.data`'s int32 cannot hold it."""
    check_integer("seed", seed, 0)
    return int(check_number("seed", seed, 0, 2**31 - 1))


class _Split:
    """Examples in memory, and the first and last of each task."""

    def __init__(
        self,
        tf: Any,
        x: np.ndarray,
        y: np.ndarray,
        num_tasks: int,
        bounds: np.ndarray | None,
    ):
        if bounds is None:
            self.starts = np.zeros(num_tasks, "int32")
            self.stops = np.full(num_tasks, len(x), "int32")
        else:
            bounds = np.asarray(bounds, "int32")
            self.starts, self.stops = bounds[:-1], bounds[1:]
        with tf.device("CPU"):
            self.x, self.y = tf.constant(x), tf.constant(y)

    @property
    def sizes(self) -> np.ndarray:
        return self.stops - self.starts

    def count(self, num_classes: int) -> list[list[int]]:
        y = self.y.numpy()
        return [
            np.bincount(y[start:stop], minlength=num_classes).tolist()
            for start, stop in zip(self.starts, self.stops, strict=True)
        ]
