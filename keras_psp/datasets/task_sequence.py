"""A sequence of tasks as tf.data pipelines."""

from collections.abc import Callable
from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING

from keras_psp.contexts.task_index import check_num_tasks
from keras_psp.contexts.task_index import check_task
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import Source

if TYPE_CHECKING:
    import tensorflow as tf


class TaskSequence:
    """Tasks made of one source by a transform of its images.

    All pipelines work on whole batches and are a function of `seed` alone. Elements
    are `({"image": float32, "task": int32}, label int32)`, images scaled as the source
    says.

    Args:
        source: A `Source`.
        num_tasks: Positive integer, the number of tasks.
        transform: Function of images `(batch, ...)` and a scalar int32 task; returns
            the images as that task has them. Runs inside the pipeline.
        seed: Non-negative integer, of the order in which `stream()` draws examples.

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
    ):
        self.source = source
        self.num_tasks = check_num_tasks(num_tasks)
        self.seed = seed
        self._transform = transform
        self._tf = tf = import_tensorflow()
        with tf.device("CPU"):
            self._train = tf.constant(source.x_train), tf.constant(source.y_train)
            self._test = tf.constant(source.x_test), tf.constant(source.y_test)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.source.image_shape

    @property
    def num_classes(self) -> int:
        """The number of classes of every task."""
        return self.source.num_classes

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
        num_examples = len(self.source.x_train)
        _check_positive("steps_per_task", steps_per_task)
        _check_positive("batch_size", batch_size)
        if batch_size > num_examples:
            raise ValueError(
                f"`batch_size` must be at most {num_examples}, the number of training "
                f"examples. Received: batch_size={batch_size}"
            )
        per_pass = num_examples // batch_size
        passes = -(-steps_per_task // per_pass)

        def one_pass(number):
            order = tf.random.experimental.stateless_shuffle(
                tf.range(num_examples), seed=tf.stack([self.seed, number])
            )
            batches = tf.reshape(order[: per_pass * batch_size], (per_pass, batch_size))
            return tf.data.Dataset.from_tensor_slices(batches)

        def one_task(task):
            numbers = tf.range(task * passes, (task + 1) * passes)
            batches = tf.data.Dataset.from_tensor_slices(numbers).flat_map(one_pass)
            batches = batches.take(steps_per_task)
            return batches.map(lambda indices: (task, indices))

        dataset = tf.data.Dataset.from_tensor_slices(tf.range(self.num_tasks))
        dataset = dataset.flat_map(one_task)
        dataset = self._gather(dataset, self._train)
        return dataset.apply(
            tf.data.experimental.assert_cardinality(self.num_tasks * steps_per_task)
        )

    def _ordered(self, split, tasks, batch_size):
        tf = self._tf
        tasks = [check_task(task, self.num_tasks) for task in tasks]
        if batch_size is not None:
            _check_positive("batch_size", batch_size)
        num_examples = split[0].shape[0]
        # A batch is of one task: one permutation serves all its images.
        batches = tf.data.Dataset.range(num_examples, output_type=tf.int32)
        batches = batches.batch(batch_size or 256)
        pairs = tf.data.Dataset.from_tensor_slices(tf.constant(tasks, tf.int32))
        pairs = pairs.flat_map(
            lambda task: batches.map(lambda indices: (task, indices))
        )
        dataset = self._gather(pairs, split)
        if batch_size is None:
            dataset, size = dataset.unbatch(), num_examples
        else:
            size = -(-num_examples // batch_size)
        return dataset.apply(tf.data.experimental.assert_cardinality(len(tasks) * size))

    def _gather(self, pairs, split):
        """Maps `(task, indices)` to batches."""
        tf = self._tf
        x, y = split
        unit = 255 if x.dtype == tf.uint8 else 1
        offset, scale = unit * self.source.mean, unit * self.source.std

        def gather(task, indices):
            images = tf.cast(tf.gather(x, indices), tf.float32)
            images = (images - offset) / scale
            images = tf.ensure_shape(
                self._transform(images, task), [indices.shape[0], *self.image_shape]
            )
            tasks = tf.fill(tf.shape(indices), task)
            return {"image": images, "task": tasks}, tf.gather(y, indices)

        batches = pairs.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
        return batches.prefetch(tf.data.AUTOTUNE)


def _check_positive(name, value):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
