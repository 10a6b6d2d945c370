"""A plain Keras model -> the same model, for many tasks."""

import re
import warnings
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import check_context
from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import copy_weights
from keras_psp.contexts.context import Context
from keras_psp.contexts.families import series
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._build_superposed import build_superposed


def convert(
    model: keras.Model,
    num_tasks: int,
    context: str | Context = "binary",
    layers: Sequence[str] | str | re.Pattern | Callable | None = None,
    context_over: str = "kernel",
) -> TaskModel:
    """Makes a Keras model one of many tasks, each of which starts as that model.

    A layer with a counterpart here (`Dense`, `EinsumDense`, `Conv1D`, `Conv2D`,
    `Conv3D`, `DepthwiseConv1D`, `DepthwiseConv2D`, `MultiHeadAttention`,
    `GroupQueryAttention`, `BatchNormalization`, `LayerNormalization`) is replaced by
    it, with the same name and arguments. Its kernel, or the kernel of each projection
    of an attention, becomes a base kernel, which all tasks share and which is not
    trained. Beside it stands a superposed kernel of zeros:

    ```
    W_k = W_0 + C_k W,  W = 0
    ```

    Each task has its own biases, scales, statistics and depthwise kernels. This is the
    only way every task can start as the original model: a kernel unbound for one task
    is noise to the others. The kernels take twice their memory, for any number of
    tasks.

    Args:
        model: Functional or sequential Keras model, built. Models inside it are
            converted too. It is not changed.
        num_tasks: Positive integer, the number of tasks.
        context: Name of a context family, or a `keras_psp.contexts.Context`. Each layer
            gets a context like it with a seed of its own. Defaults to `"binary"`.
        layers: Which layers to convert: a list of names, a regular expression for whole
            names, or a function of a layer that returns a boolean. Defaults to all. A
            warning names those without a counterpart whose weights all tasks share.
        context_over: What contexts of convolutions act on: `"kernel"`, as in the paper,
            or `"channels"`, which is faster where a batch holds many tasks but
            interferes more. See `keras_psp.layers.PSPConv2D`.

    Returns:
        A `keras_psp.models.TaskModel`, not compiled. Inputs: a dictionary of the
        model's inputs by name, and `"task"`, int32 `(batch,)`. Inputs without a name
        are called `"input"`, `"input_1"`, ..., and one that has the name of a layer
        gets `"_input"` behind it. Outputs: the model's. A task that is added later also
        starts as the model.

    Raises:
        TypeError: `model` is not a Keras model, `num_tasks` not an integer, or `layers`
            none of the above.
        ValueError: The model is not built, neither functional nor sequential, or takes
            a task already; `layers` names a layer that does not exist or has no
            counterpart, matches none that has one, or is no regular expression; a layer
            is quantized or has a LoRA, or its config does not hold all that it needs;
            the context family cannot hold so many tasks.

    Example:

    >>> import keras, keras_psp
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> tasks = keras_psp.convert(model, num_tasks=3)
    >>> x = keras.ops.ones((2, 4))
    >>> y = tasks({"x": x, "task": keras.ops.array([0, 2])})
    >>> bool(keras.ops.all(keras.ops.isclose(y, model(x))))
    True

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3, for what is
        added to a kernel.
    """
    num_tasks = check_integer("num_tasks", num_tasks)
    seed = check_context(context, context_over)
    graph = Graph(model)
    chosen = _choose(graph, layers)
    contexts = series(context, num_tasks, len(chosen), seed=seed)

    def new_layer(layer):
        return make_superposed(layer, num_tasks, contexts.pop, True, context_over)

    converted, pairs = build_superposed(graph, chosen, new_layer)
    for layer, superposed in pairs:
        if isinstance(superposed, Superposed):
            superposed.base_kernel.assign(layer.get_weights()[0])
            superposed.kernel.assign(np.zeros(superposed.kernel.shape))
        if isinstance(superposed, (Superposed, TaskRows)):
            set_task_weights(superposed, [layer] * num_tasks)
            set_new_rows(superposed, layer)
        else:
            copy_weights(layer, superposed)
    return converted


def _choose(graph, wanted):
    """Returns the layers to convert, and warns of those that cannot be converted."""
    layers = graph.layers
    named = isinstance(wanted, (list, tuple))
    if named:
        names = {layer.name for layer in layers}
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(
                f"There is no layer {unknown[0]!r} in {graph.name!r}. "
                f"Received: layers={wanted!r}"
            )
        layers = [layer for layer in layers if layer.name in wanted]
    elif isinstance(wanted, (str, re.Pattern)):
        try:
            expression = re.compile(wanted)
        except re.error as error:
            raise ValueError(
                f"`layers` must be a regular expression ({error}). "
                f"Received: layers={wanted!r}"
            ) from error
        layers = [layer for layer in layers if expression.fullmatch(layer.name)]
    elif callable(wanted):
        layers = [layer for layer in layers if wanted(layer)]
    elif wanted is not None:
        raise TypeError(
            "`layers` must be a list of names, a regular expression, or a function of "
            f"a layer. Received: layers={wanted!r} (of type {type(wanted).__name__})"
        )
    for layer in layers:
        if is_altered(layer):
            raise ValueError(
                "A layer that is quantized or has a LoRA cannot be converted. "
                f"Received: {layer.name!r}"
            )
    chosen = [layer for layer in layers if can_convert(layer)]
    left = [layer for layer in layers if layer.weights and not can_convert(layer)]
    message = "These layers have no superposed counterpart: " + ", ".join(
        f"{layer.name!r} ({type(layer).__name__})" for layer in left
    )
    if left and (named or not chosen):
        raise ValueError(message)
    if not chosen:
        raise ValueError(
            f"No layer of {graph.name!r} can be converted. Received: layers={wanted!r}"
        )
    if left:
        warnings.warn(f"{message}. All tasks share their weights.", stacklevel=3)
    return chosen
