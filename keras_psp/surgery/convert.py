"""A plain Keras model -> the same model, for many tasks."""

import re
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.private import own_weights
from keras_psp._core.task_index import check_num_tasks
from keras_psp._reading.calls import find_changing
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import check_context
from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.counterparts import least_side
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.graph import read_model
from keras_psp._reading.plan import Plan
from keras_psp._reading.plan import calls_inside
from keras_psp._reading.plan import is_safe
from keras_psp._reading.task_layers import read_parts
from keras_psp._reading.within import can_copy
from keras_psp._reading.within import count_numbers
from keras_psp._reading.within import holders
from keras_psp._reading.within import is_block
from keras_psp._reading.within import weights_of
from keras_psp.contexts.context import Context
from keras_psp.contexts.families import series
from keras_psp.layers._block import freeze_shared
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_rows import TaskRows
from keras_psp.surgery._advise import advise_of_narrow_layers
from keras_psp.surgery._build_superposed import build_superposed

# What becomes of weights that all tasks share.
SHARED = ("warn", "freeze", "copy")


def convert(
    model: keras.Model,
    num_tasks: int | Sequence[str],
    context: str | Context | None = "binary",
    layers: Sequence[str] | str | re.Pattern | Callable | None = None,
    context_over: str = "kernel",
    shared: Literal["warn", "freeze", "copy"] | None = None,
    rank: int | None = None,
) -> Any:
    """Makes a Keras model one of many tasks, each of which starts as that model.

    A layer with a counterpart here (`Dense`, `EinsumDense`, `Conv1D`, `Conv2D`,
    `Conv3D`, `DepthwiseConv1D`, `DepthwiseConv2D`, `MultiHeadAttention`,
    `GroupQueryAttention`, `BatchNormalization`, `LayerNormalization`,
    `RMSNormalization`) is replaced by it, with the same name and arguments. Its kernel,
    or the kernel of each projection of an attention, becomes a base kernel, which all
    tasks share and which is not trained. Beside it stands a superposed kernel of zeros:

    ```
    W_k = W_0 + C_k W,  W = 0
    ```

    Each task has its own biases, scales, statistics and depthwise kernels. This is the
    only way every task can start as the original model: a kernel unbound for one task
    is noise to the others. The kernels take twice their memory, for any number of
    tasks.

    Layers inside blocks of your own, Keras' wrappers and KerasHub's layers are replaced
    too, where they stand. They take their task from the scope that the model opens.

    Args:
        model: Built Keras model. Models inside it are converted too. It is not changed.
            A subclass with a `call()` or a `get_config()` of its own must be one that
            `from_config(get_config())` makes again, and so must blocks.
        num_tasks: Positive integer, the number of tasks; or a list of their names.
        context: Name of a context family, or a `keras_psp.contexts.Context`. Each layer
            gets a context like it with a seed of its own. Defaults to `"binary"`. Or
            `None`, for no superposed kernel: with a `rank`, each task then is an
            adapter of one base that stays as it is.
        layers: Which layers to convert: a list of names, a regular expression for whole
            names, or a function of a layer that returns a boolean. Defaults to all. A
            warning names those without a counterpart whose weights all tasks share.
        context_over: What contexts of convolutions act on: `"kernel"`, as in the paper,
            or `"channels"`, which is faster where a batch holds many tasks but
            interferes more. See `keras_psp.layers.PSPConv2D`.
        shared: What becomes of weights in layers without a counterpart. `"warn"`: all
            tasks share and train them, and a warning says how many there are.
            `"freeze"`: what tasks share is not trained. `"copy"`: each task has a copy
            of its own; of embeddings, this is a `TaskEmbedding`. What cannot be copied
            is not trained, and a warning says what it is. Defaults to `"warn"`, or to
            `"freeze"` without a context. Moving averages of layers of your own are
            shared, and change in training whatever this is: a warning names them.
        rank: Positive integer, the rank of a kernel `A_k B_k` that each task has of its
            own in every layer with a kernel, as in LoRA; less where a layer is smaller,
            and none where a convolution has groups of filters. Or `None`.

    A `keras_psp.InterferenceWarning` names layers with too few inputs for so many
    tasks, in which these will disturb each other.

    Returns:
        A model that is not compiled. Of a functional or sequential model, it is a
        `keras_psp.models.TaskModel`. Inputs: a dictionary of the
        model's inputs by name, and `"task"`, int32 `(batch,)`. Inputs without a name
        are called `"input"`, `"input_1"`, ..., and one that has the name of a layer
        gets `"_input"` behind it. A layer `"task"` becomes `"task_layer"`. Outputs: the
        model's. A task that is added later also
        starts as the model.

        A model of a class of its own, such as KerasHub's, keeps its class and methods.
        Call them in a scope, `with keras_psp.task(3): model.predict(x)`. Or give the
        task beside the inputs: as `"task"` in the model's dictionary of inputs, or as
        `{"inputs": x, "task": task}`.

    Raises:
        TypeError: `model` is not a Keras model, `num_tasks` not an integer, or `layers`
            none of the above.
        ValueError: The model is not built, cannot be made again from its config, or
            takes a task already; `shared` is none of the above; `layers` names a layer
            that does not exist or has no counterpart, matches none that has one, or is
            no regular expression; a layer is quantized or has a LoRA, or its config
            does not hold all that it needs; the context family cannot hold so many
            tasks.

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
    num_tasks, names = check_num_tasks(num_tasks)
    seed = check_context(context, context_over)
    if shared is None:
        shared = "warn" if context is not None else "freeze"
    check_name("shared", shared, SHARED)
    if rank is not None:
        rank = check_integer("rank", rank)
    elif context is None:
        raise ValueError(
            "Without a context, `rank` must be given: it tells how much each task has "
            "of its own. Received: context=None, rank=None"
        )
    read = read_model(model)
    holding, calls = _find_holders(read, shared == "copy")
    chosen, copied, kept = _choose(
        read, holding, calls, layers, shared, context is None
    )
    contexts = [None] * len(chosen)
    if context is not None:
        contexts = series(context, num_tasks, len(chosen), seed=seed)

    def new_layer(layer):
        most = rank and min(rank, least_side(layer))
        return make_superposed(
            layer, num_tasks, contexts.pop, True, context_over, rank=most
        )

    plan = Plan.of(chosen, copied, calls)
    converted, pairs = build_superposed(read, plan, new_layer, num_tasks)
    for layer, superposed in pairs:
        if isinstance(superposed, Superposed):
            superposed.base_kernel.assign(layer.get_weights()[0])
            if context is not None:
                superposed.kernel.assign(np.zeros(superposed.kernel.shape))
        if isinstance(superposed, (Superposed, TaskRows)):
            set_task_weights(superposed, [layer] * num_tasks)
            set_new_rows(superposed, layer)
        else:
            copy_weights(layer, superposed)
    if rank is None:
        advise_of_narrow_layers([layer for _, layer in pairs], num_tasks)
    if shared == "freeze" or (shared == "copy" and kept):
        for layer in read_parts(converted):
            freeze_shared(layer)
    if names is not None:
        converted.task_names = names
    return converted


def _find_holders(read, copy):
    """Returns the layers that hold weights, and how they are called.

    A block with weights of its own is one of them with all inside it, if it is to be
    copied and nothing inside it is used elsewhere.
    """
    unsafe = set()

    def is_whole(block):
        to_copy = copy and bool(own_weights(block)) and can_copy(block)
        return to_copy and id(block) not in unsafe

    layers = holders(read.layers, is_whole)
    calls = calls_inside(read, layers)
    blocks = filter(is_block, layers)
    unsafe.update(id(block) for block in blocks if not is_safe(block, calls))
    if copy and unsafe:
        layers = holders(read.layers, is_whole)
        calls = calls_inside(read, layers)
    return layers, calls


def _select(read, layers, wanted):
    """Returns the layers that `convert(layers=)` means."""
    if wanted is None:
        return layers
    if isinstance(wanted, (list, tuple)):
        names = {layer.name for layer in layers}
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(
                f"There is no layer {unknown[0]!r} in {read.name!r}. "
                f"Received: layers={wanted!r}"
            )
        return [layer for layer in layers if layer.name in wanted]
    if isinstance(wanted, (str, re.Pattern)):
        try:
            expression = re.compile(wanted)
        except re.error as error:
            raise ValueError(
                f"`layers` must be a regular expression ({error}). "
                f"Received: layers={wanted!r}"
            ) from error
        return [layer for layer in layers if expression.fullmatch(layer.name)]
    if callable(wanted):
        return [layer for layer in layers if wanted(layer)]
    raise TypeError(
        "`layers` must be a list of names, a regular expression, or a function of "
        f"a layer. Received: layers={wanted!r} (of type {type(wanted).__name__})"
    )


def _choose(read, layers, calls, wanted, shared, in_parts):
    """Returns the layers to convert, those to copy, and those that all tasks share.

    Warns of the last, unless they are to be frozen. A layer whose weights
    a block uses without calling it is one of these: its code would not see the task.
    """
    named = isinstance(wanted, (list, tuple))
    layers = _select(read, layers, wanted)
    for layer in layers:
        if is_altered(layer):
            raise ValueError(
                "A layer that is quantized or has a LoRA cannot be converted. "
                f"Received: {layer.name!r}"
            )
    chosen = [
        each for each in layers if can_convert(each, in_parts) and is_safe(each, calls)
    ]
    left = [each for each in layers if weights_of(each) and each not in chosen]
    kept = [
        layer
        for layer in left
        if shared != "copy" or not (can_copy(layer) and is_safe(layer, calls))
    ]
    message = "These layers have no superposed counterpart: " + ", ".join(
        f"{layer.name!r} ({type(layer).__name__})" for layer in kept
    )
    if kept and (named or not chosen) and shared != "freeze":
        raise ValueError(message)
    if not chosen and (shared != "copy" or not left):
        raise ValueError(
            f"No layer of {read.name!r} can be converted. Received: layers={wanted!r}"
        )
    if kept and shared != "warn":
        _warn_of_changing(find_changing(read, kept))
    if kept and shared != "freeze":
        count = sum(count_numbers(weights_of(layer)) for layer in kept)
        share = count / max(read.model.count_params(), 1)
        message += f". All tasks share their weights, {share:.1%} of the model's, "
        if shared == "copy":
            message += "which cannot be copied and are not trained."
        else:
            message += (
                'and train them. Use `shared="freeze"` to keep them as they are, or '
                '`shared="copy"` to give each task its own.'
            )
        warnings.warn(message, stacklevel=3)
    copied = [each for each in left if each not in kept] if shared == "copy" else []
    return chosen, copied, kept


def _warn_of_changing(layers):
    """Warns of shared layers that are not trained but change all the same."""
    if layers:
        names = ", ".join(f"{each.name!r} ({type(each).__name__})" for each in layers)
        warnings.warn(
            "The code of these layers changes weights in training, as moving averages "
            f"are: {names}. All tasks share them, so a task that is trained changes "
            "the answers of the others. Train before you convert, or call such layers "
            "with `training=False`.",
            stacklevel=4,
        )
