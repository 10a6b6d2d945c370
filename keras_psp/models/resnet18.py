"""The residual network of the paper's incremental experiments."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.task_index import check_num_tasks
from keras_psp.layers import PSPConv2D
from keras_psp.layers import TaskBatchNormalization
from keras_psp.models._seeded_layers import HEADS
from keras_psp.models._seeded_layers import SeededLayers
from keras_psp.models.task_model import TaskModel

NORMS = ("task", "batch", "shared", "group")
STEMS = ("cifar", "imagenet")
# The stem, four stages of two blocks of two, three shortcuts, the head.
_NUM_CONTEXTS = 1 + 4 * 2 * 2 + 3 + 1


def resnet18(
    input_shape: Any,
    num_classes: int,
    num_tasks: int | Sequence[str],
    context: Any = "binary",
    context_over: str = "kernel",
    learnable: bool = False,
    head: str = "superposed",
    norm: str = "task",
    stem: str = "cifar",
    width: float = 1.0,
    seed: int = 0,
    rank: int | None = None,
    name: str = "resnet18",
) -> keras.Model:
    """Builds a ResNet18 that holds `num_tasks` models in one.

    Args:
        input_shape: Tuple `(height, width, channels)` of one image; height and width
            may be `None`.
        num_classes: Positive integer, the number of logits.
        num_tasks: Positive integer, the number of tasks; or a list of their names.
        context: Name of a context family, one of `keras_psp.contexts.FAMILIES`, or a
            `Context` that shows what each layer's own is to be, but for its seed; or
            `None` for plain `Conv2D` layers.
        context_over: `"kernel"` or `"channels"`, see `keras_psp.layers.PSPConv2D`.
        learnable: Boolean, with a family's name: whether the contexts are trained.
        head: `"superposed"`; `"multi"`, a `TaskDense`; or `"shared"`, a plain `Dense`
            that knows no tasks.
        norm: `"task"`, statistics, scale and offset of its own for each task;
            `"batch"`, always the batch's statistics and nothing else, as in the
            authors' code (an answer depends on the batch it is in); `"shared"`, a
            plain `BatchNormalization`; or `"group"`, a plain `GroupNormalization`.
        stem: `"cifar"`, a 3x3 convolution; or `"imagenet"`, a 7x7 convolution and a
            maximum, each by steps of 2.
        width: Positive number; 1 has 64 filters in the first stage, 512 in the last.
        seed: Non-negative integer: equal seeds give equal contexts and equal initial
            kernels, on every backend.
        rank: Positive integer, the rank of the part that each task has of its own
            beside the superposed kernel, in all layers but the head; or `None`. Train
            it with `keras_psp.optimizers.PerTask`.
        name: Name of the model.

    Returns:
        A functional model. Inputs: `{"image": float32 (batch, *input_shape), "task":
        int32 (batch,)}`; output: logits, `(batch, num_classes)`. A `TaskModel`, unless
        no layer of it knows tasks.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras_psp
    >>> model = keras_psp.models.resnet18((32, 32, 3), 10, num_tasks=5, width=0.125)
    >>> model.output_shape
    (None, 10)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.3; [He et
        al., 2016](https://arxiv.org/abs/1512.03385), table 1, with the stem of its
        section 4.2.
    """
    num_tasks, names = check_num_tasks(num_tasks)
    for what, value, known in (
        ("head", head, HEADS),
        ("norm", norm, NORMS),
        ("stem", stem, STEMS),
    ):
        check_name(what, value, known)
    if len(input_shape) != 3 or not input_shape[-1]:
        raise ValueError(
            "`input_shape` must be (height, width, channels), with channels known. "
            f"Received: input_shape={input_shape}"
        )
    if isinstance(width, bool) or not isinstance(width, (int, float)) or width <= 0:
        raise ValueError(f"`width` must be a positive number. Received: width={width}")
    if context is None and head == "superposed":
        raise ValueError("A superposed head needs a context. Received: context=None")
    if rank is not None:
        check_integer("rank", rank)
        if context is None:
            raise ValueError(
                "A part of low rank stands beside a superposed kernel. "
                f"Received: rank={rank}, context=None"
            )
    layers = SeededLayers(context, num_tasks, _NUM_CONTEXTS, learnable, seed)
    image = keras.Input(input_shape, name="image")
    task = keras.Input((), dtype="int32", name="task")

    def conv(x, filters, size, strides, name):
        options = {"strides": strides, "padding": "same", "use_bias": False}
        options["name"] = name
        if context is None:
            layer = keras.layers.Conv2D(filters, size, **options)
            y = layer(x)
        else:
            options |= {"context": layers.context(), "context_over": context_over}
            layer = PSPConv2D(filters, size, rank=rank, **options)
            y = layer(x, task)
        shape = layer.kernel.shape
        layers.draw(layer.kernel, shape, variance=2 / math.prod(shape[:-1]))
        return normalize(y, name.replace("conv", "norm"))

    def normalize(x, name):
        # As PyTorch's, but for the names.
        options = {"momentum": 0.9, "epsilon": 1e-5, "name": name}
        if norm == "task":
            layer = TaskBatchNormalization(num_tasks, affine_per_task=True, **options)
            return layer(x, task)
        if norm == "group":
            groups = math.gcd(32, x.shape[-1])
            return keras.layers.GroupNormalization(groups, epsilon=1e-5, name=name)(x)
        if norm == "batch":
            options |= {"center": False, "scale": False}
            return keras.layers.BatchNormalization(**options)(x, training=True)
        return keras.layers.BatchNormalization(**options)(x)

    def block(x, filters, strides, name):
        y = conv(x, filters, 3, strides, f"{name}_conv_0")
        y = keras.layers.ReLU(name=f"{name}_relu_0")(y)
        y = conv(y, filters, 3, 1, f"{name}_conv_1")
        if strides != 1 or x.shape[-1] != filters:
            x = conv(x, filters, 1, strides, f"{name}_shortcut_conv")
        y = keras.layers.Add(name=f"{name}_add")([x, y])
        return keras.layers.ReLU(name=f"{name}_relu_1")(y)

    filters = max(1, round(64 * width))
    x = conv(image, filters, *((3, 1) if stem == "cifar" else (7, 2)), "stem_conv")
    x = keras.layers.ReLU(name="stem_relu")(x)
    if stem == "imagenet":
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage in range(4):
        for i in range(2):
            strides = 2 if stage > 0 and i == 0 else 1
            x = block(x, filters * 2**stage, strides, f"stage_{stage}_block_{i}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    # A bias that tasks share would be the last one's.
    logits = layers.dense(
        x, task, num_classes, "logits", head, use_bias=head != "superposed"
    )
    knows_tasks = context is not None or head != "shared" or norm == "task"
    kind = TaskModel if knows_tasks else keras.Model
    model = kind({"image": image, "task": task}, logits, name=name)
    if names is not None and knows_tasks:
        model.task_names = names
    return model
