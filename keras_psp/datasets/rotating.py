"""Rotating images: they turn a little every step, all the way round and round."""

import math

import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp.datasets._tensorflow import import_tensorflow
from keras_psp.datasets.sources import load_source
from keras_psp.datasets.task_sequence import TaskSequence

ASSIGNMENTS = ("window", "step", "random", "mixture")


def rotating(
    source="mnist",
    period=1000,
    context_every=100,
    cycles=1,
    assignment="window",
    seed=0,
) -> TaskSequence:
    """Returns the rotating tasks: arcs of a circle through which the images turn.

    A circle has `period` angles, one for each step of training. A task is an arc of
    `context_every` of them: in `stream(steps_per_task=context_every, ...)` its images
    turn by one angle a step. Test images of a task are spread over the angles of its
    arc, and given the contexts with which these were trained. In `cycles` of more than
    one, each arc comes back after a whole circle, with its contexts.

    Images are turned counterclockwise with bilinear interpolation, inside the
    pipeline, a batch at a time; corners that come into view have the value of a pixel
    of 0.

    Args:
        source: A name, arrays or a `Source`: see `keras_psp.datasets.load_source`. The
            images have shape `(height, width, channels)`.
        period: Positive integer, the angles of a circle.
        context_every: Positive integer that divides `period`: the angles of an arc.
        cycles: Positive integer, how often the images turn round.
        assignment: Which contexts a model is given. `"window"`: an arc has one.
            `"step"`: every angle has its own, one of `period` (the paper's fast
            contexts). `"random"`: every angle has one of `period`, another in every
            circle. `"mixture"`: soft contexts, at every angle the mean of its arc's and
            the next's, weighted by how near it is to each.
        seed: Non-negative integer, of the order of the examples and of random
            contexts.

    Returns:
        A `TaskSequence` of `period // context_every` tasks.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

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
    check_name("assignment", assignment, ASSIGNMENTS)
    if period % context_every:
        raise ValueError(
            "`context_every` must divide `period`. "
            f"Received: period={period}, context_every={context_every}"
        )
    source = load_source(source)
    if len(source.image_shape) != 3:
        raise ValueError(
            "Images that turn have shape (height, width, channels). "
            f"Received: images of shape {source.image_shape}"
        )
    tf = import_tensorflow()
    num_tasks = period // context_every
    mixed = assignment == "mixture"
    black = -source.mean / source.std

    def find_angle(task, moments):
        """The number of each example's angle, int32 `(batch,)`."""
        # A moment is a step's, but for rounding.
        within = tf.floor(moments * context_every + 1e-3)
        return task * context_every + tf.cast(within, tf.int32)

    def turn(images, task, moments):
        angles = tf.cast(find_angle(task, moments), tf.float32)
        return _rotate(tf, images, angles * (2 * math.pi / period), black)

    def choose(task, moments, visit):
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
        source,
        num_tasks,
        turn,
        seed=seed,
        cycles=cycles,
        context=None if assignment == "window" else choose,
        num_contexts=period if assignment in ("step", "random") else num_tasks,
        soft=mixed,
    )


def _rotate(tf, images, radians, fill):
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
