"""The multi-layer perceptron of the paper's permuting experiments."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.task_index import check_num_tasks
from keras_psp.models._seeded_layers import HEADS
from keras_psp.models._seeded_layers import SeededLayers
from keras_psp.models.task_model import TaskModel


def mlp(
    input_shape: Any,
    num_classes: int,
    num_tasks: int | Sequence[str],
    units: int = 256,
    depth: int = 3,
    context: Any = "binary",
    learnable: bool = False,
    head: str = "superposed",
    complex_valued: bool = False,
    soft: bool = False,
    seed: int = 0,
    rank: int | None = None,
    name: str = "mlp",
) -> TaskModel:
    """Builds a multi-layer perceptron that holds `num_tasks` models in one.

    As in the authors' code: `depth` hidden layers of `units` rectified units, kernels
    drawn from N(0, 2 / (in + out)), no biases (tasks would share them).

    Args:
        input_shape: Tuple of integers, the shape of one image.
        num_classes: Positive integer, the number of logits.
        num_tasks: Positive integer, the number of tasks; or a list of their names.
        units: Positive integer, the width of a hidden layer.
        depth: Non-negative integer, the number of hidden layers.
        context: Name of a context family, one of `keras_psp.contexts.FAMILIES`, or a
            `Context` that shows what each layer's own is to be, but for its seed.
        learnable: Boolean, with a family's name: whether the contexts are trained.
        head: `"superposed"`; `"multi"`, a `TaskDense`; or `"shared"`, a plain `Dense`
            that knows no tasks.
        complex_valued: Boolean, whether the network's numbers are complex, as in the
            paper's complex superposition. It has twice the weights; the logits are
            the real part of its outputs.
        soft: Boolean, whether the model takes soft contexts, a weight for each task,
            in place of an index.
        seed: Non-negative integer: equal seeds give equal contexts and equal initial
            kernels, on every backend.
        rank: Positive integer, the rank of the part that each task has of its own
            beside the superposed kernel, in all layers but the head; or `None`. Train
            it with `keras_psp.optimizers.PerTask`.
        name: Name of the model.

    Returns:
        A `TaskModel`. Inputs: `{"image": float32 (batch, *input_shape), "task":
        int32 (batch,)}`, or if `soft` float32 `(batch, num_tasks)`; output: logits,
        `(batch, num_classes)`.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras_psp
    >>> model = keras_psp.models.mlp((8, 8, 1), num_classes=10, num_tasks=20)
    >>> model.output_shape
    (None, 10)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 4.1.
    """
    num_tasks, names = check_num_tasks(num_tasks)
    check_name("head", head, HEADS)
    if complex_valued and head != "superposed":
        raise ValueError(
            f"A complex network has a superposed head. Received: head={head!r}, "
            "complex_valued=True"
        )
    check_integer("depth", depth, least=0)
    if rank is not None:
        check_integer("rank", rank)
        if complex_valued or depth == 0:
            raise ValueError(
                "A part of low rank stands beside real kernels of hidden layers. "
                f"Received: rank={rank}, complex_valued={complex_valued}, depth={depth}"
            )
    layers = SeededLayers(context, num_tasks, depth + 1, learnable, seed)
    kind = "complex" if complex_valued else "superposed"

    image = keras.Input(input_shape, name="image")
    if soft:
        task = keras.Input((num_tasks,), name="task")
    else:
        task = keras.Input((), dtype="int32", name="task")
    x = keras.layers.Flatten(name="flatten")(image)
    if complex_valued:
        zeros = keras.layers.Rescaling(0.0, name="imaginary")(x)
        x = keras.layers.Concatenate(name="complex")([x, zeros])
    for i in range(depth):
        x = layers.dense(x, task, units, f"dense_{i}", kind, rank=rank)
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    logits = layers.dense(
        x, task, num_classes, "logits", kind if head == "superposed" else head
    )
    if complex_valued:
        logits = logits[:, :num_classes]
    model = TaskModel({"image": image, "task": task}, logits, name=name)
    if names is not None:
        model.task_names = names
    return model
