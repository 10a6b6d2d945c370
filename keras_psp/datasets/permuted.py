"""Permuted images: every task sees the pixels in an order of its own."""

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence


def permuted(source="digits", num_tasks=10, seed=0) -> TaskSequence:
    """Returns the permuting tasks: one random order of the pixels for each task.

    Task 0 has the images as they are. Training and test images of a task are permuted
    alike, inside the pipeline, a batch at a time.

    Args:
        source: A name, arrays or a `Source`: see `keras_psp.datasets.load_source`.
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer: equal seeds give equal permutations and an equal
            order of the examples. The first tasks do not depend on `num_tasks`.

    Returns:
        A `TaskSequence`.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> from keras_psp import datasets
    >>> tasks = datasets.permuted("digits", num_tasks=5)
    >>> tasks.image_shape, tasks.num_classes, len(tasks.train(4)), len(tasks.test(4))
    ((8, 8, 1), 10, 1438, 359)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.1.
    """
    num_tasks = check_integer("num_tasks", num_tasks)
    source = load_source(source)
    tf = import_tensorflow()
    num_pixels = int(np.prod(source.image_shape))
    with tf.device("CPU"):
        orders = tf.constant(_permutations(num_tasks, num_pixels, seed))

    def permute(images, task, moments):
        # Permuting rows moves memory in blocks: twice as fast as permuting columns,
        # both transpositions included.
        pixels = tf.transpose(tf.reshape(images, (-1, num_pixels)))
        pixels = tf.transpose(tf.gather(pixels, orders[task]))
        return tf.reshape(pixels, (-1, *source.image_shape))

    return TaskSequence(source, num_tasks, permute, seed=seed)


def _permutations(num_tasks, num_pixels, seed):
    # From the raw stream of the bit generator, which NumPy promises never to change.
    keys = np.random.PCG64(seed).random_raw((num_tasks - 1) * num_pixels)
    keys = keys.reshape(num_tasks - 1, num_pixels)
    orders = np.argsort(keys, axis=1, kind="stable").astype("int32")
    return np.concatenate([np.arange(num_pixels, dtype="int32")[None], orders])
