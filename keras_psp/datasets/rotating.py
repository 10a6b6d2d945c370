"""Rotating images: they turn by a small angle at every step."""

import math
from typing import Any

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import SourceLike
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence
from keras_psp.datasets.task_sequence import check_seed

ASSIGNMENTS = ("window", "step", "random", "mixture")


def rotating(
    source: SourceLike = "mnist",
    period: int = 1000,
    context_every: int = 100,
    cycles: int = 1,
    assignment: str = "window",
    seed: int = 0,
) -> TaskSequence:
    """Returns the rotating tasks: arcs of a circle through which the images turn.

    A circle has `period` angles, one for each training step. A task is an arc of
    `context_every` angles: in `stream(steps_per_task=context_every, ...)` its images
    turn by one angle per step. Test images of a task are spread over the angles of its
    arc and have the contexts with which these angles were trained. If `cycles` is more
    than 1, each arc comes back after a whole circle, with its contexts.

    The pipeline turns one batch of images at a time, counterclockwise and with bilinear
    interpolation. Corners that come into view have the value of a pixel of 0.

    Args:
        source: A name, arrays or a `Source`: see `keras_psp.datasets.load_source`. The
            images have shape `(height, width, channels)`.
        period: Positive integer, the angles of a circle.
        context_every: Positive integer that divides `period`: the angles of an arc.
        cycles: Positive integer, the number of full turns.
        assignment: Which contexts a model is given. `"window"`: one for each arc.
            `"step"`: one for each of the `period` angles (the paper's fast contexts).
            `"random"`: one of `period` for each angle, drawn anew in every circle.
            `"mixture"`: soft contexts; each angle has the mean of the contexts of its
            arc and of the next arc, weighted by how near it is to each.
        seed: Non-negative integer below 2**31, the seed of the order of the examples
            and of random contexts.

    Returns:
        A `TaskSequence` of `period // context_every` tasks.

    Raises:
        TypeError, ValueError: An argument is not as described above.

    Example:

    >>> from keras_psp import datasets
    >>> tasks = datasets.rotating("digits", period=40, context_every=10)
    >>> tasks.num_tasks
    4

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.2.
    """
    period = check_integer("period", period)
    context_every = check_integer("context_every", context_every)
    seed = check_seed(seed)
    check_name("assignment", assignment, ASSIGNMENTS)
    if period % context_every:
        raise ValueError(
            "`context_every` must divide `period`. "
            f"Received: period={period}, context_every={context_every}"
        )
    loaded = load_source(source)
    if len(loaded.image_shape) != 3:
        raise ValueError(
            "Rotating images must have shape (height, width, channels). "
            f"Received: images of shape {loaded.image_shape}"
        )
    tf = import_tensorflow()
    num_tasks = period // context_every
    mixed = assignment == "mixture"
    black = -loaded.mean / loaded.std

    def find_angle(task, moments):
        """The number of each example's angle, int32 `(batch,)`."""
        # A moment is that of a step, up to rounding.
        within = tf.floor(moments * context_every + 1e-3)
        return task * context_every + tf.cast(within, tf.int32)

    def turn(images, task, moments):
        angles = tf.cast(find_angle(task, moments), tf.float32)
        return _rotate(tf, images, angles * (2 * math.pi / period), black)

    def find_context(task, moments, visit):
        angles = find_angle(task, moments)
        if assignment == "step":
            return angles
        if assignment == "random":
            seeds = tf.stack([seed, visit // num_tasks])
            order = tf.random.experimental.stateless_shuffle(tf.range(period), seeds)
            return tf.gather(order, angles)
        share = tf.cast(angles % context_every, tf.float32) / context_every
        weights = tf.stack([1 - share, share], axis=1)
        both = tf.one_hot([task, (task + 1) % num_tasks], num_tasks)
        return weights @ both

    return TaskSequence(
        loaded,
        num_tasks,
        turn,
        seed=seed,
        cycles=cycles,
        context=None if assignment == "window" else find_context,
        num_contexts=period if assignment in ("step", "random") else num_tasks,
        soft=mixed,
    )


def _rotate(tf: Any, images: Any, radians: Any, fill: float) -> Any:
    """Turns each image about its centre, counterclockwise."""
    height, width = images.shape[1:3]
    y, x = (height - 1) / 2, (width - 1) / 2
    cos, sin = tf.cos(radians), tf.sin(radians)
    zeros = tf.zeros_like(cos)
    # From a place in the output to one in the input.
    to_input = tf.stack(
        [
            *(cos, -sin, x - cos * x + sin * y),
            *(sin, cos, y - sin * x - cos * y),
            *(zeros, zeros),
        ],
        axis=1,
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=to_input,
        output_shape=tf.constant([height, width]),
        fill_value=np.float32(fill),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
