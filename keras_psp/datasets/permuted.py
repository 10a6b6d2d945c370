"""Permuted images: every task has its own order of the pixels."""

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import SourceLike
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence
from keras_psp.datasets.task_sequence import check_seed


def permuted(
    source: SourceLike = "digits", num_tasks: int = 10, seed: int = 0
) -> TaskSequence:
    """Returns the permuting tasks: each task has its own random order of the pixels.

    Task 0 has the images as they are. Training and test images of a task have the same
    order. The pipeline permutes one batch at a time.

    Args:
        source: A name, arrays or a `Source`: see `keras_psp.datasets.load_source`.
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer below 2**31. Equal seeds give equal permutations and
            an equal order of the examples. The first tasks do not depend on
            `num_tasks`.

    Returns:
        A `TaskSequence`.

    Raises:
        TypeError, ValueError: An argument is not as described above.

    Example:

    >>> from keras_psp import datasets
    >>> tasks = datasets.permuted("digits", num_tasks=5)
    >>> tasks.image_shape, tasks.num_classes, len(tasks.train(4)), len(tasks.test(4))
    ((8, 8, 1), 10, 1438, 359)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.1.
    """
    num_tasks = check_integer("num_tasks", num_tasks)
    seed = check_seed(seed)
    loaded = load_source(source)
    tf = import_tensorflow()
    num_pixels = int(np.prod(loaded.image_shape))
    with tf.device("CPU"):
        orders = tf.constant(_permutations(num_tasks, num_pixels, seed))

    def permute(images, task, moments):
        # Permuting rows moves memory in blocks. Together with both transpositions it is
        # twice as fast as permuting columns.
        pixels = tf.transpose(tf.reshape(images, (-1, num_pixels)))
        pixels = tf.transpose(tf.gather(pixels, orders[task]))
        return tf.reshape(pixels, (-1, *loaded.image_shape))

    return TaskSequence(loaded, num_tasks, permute, seed=seed)


def _permutations(num_tasks: int, num_pixels: int, seed: int) -> np.ndarray:
    # From the raw stream of the bit generator, which NumPy promises never to change.
    keys = np.random.PCG64(seed).random_raw((num_tasks - 1) * num_pixels)
    keys = keys.reshape(num_tasks - 1, num_pixels)
    orders = np.argsort(keys, axis=1, kind="stable").astype("int32")
    return np.concatenate([np.arange(num_pixels, dtype="int32")[None], orders])
