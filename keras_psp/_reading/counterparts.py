"""Which layer of this package stands for which of Keras', and the way back."""

import math
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_name
from keras_psp._reading.describe import get_config
from keras_psp.contexts import Context
from keras_psp.layers import PSPComplexDense
from keras_psp.layers import PSPConv1D
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPConv3D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers import PSPGroupQueryAttention
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskDepthwiseConv1D
from keras_psp.layers import TaskDepthwiseConv2D
from keras_psp.layers import TaskEmbedding
from keras_psp.layers import TaskLayerNormalization
from keras_psp.layers import TaskReversibleEmbedding
from keras_psp.layers import TaskRMSNormalization
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._superposed_attention import SuperposedAttention
from keras_psp.layers._superposed_attention import projections
from keras_psp.layers._superposed_conv import CONTEXT_OVER
from keras_psp.layers._superposed_conv import SuperposedConv
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.layers._task_units import TaskUnits
from keras_psp.layers.psp_einsum_dense import sums_over_inputs

# The arguments that Keras' layers do not have.
OURS = (
    "num_tasks",
    "context",
    "context_over",
    "base",
    "bias_per_task",
    "rank",
    "core",
    "bits",
    "affine_per_task",
    "units_per_task",
    "removed_tasks",
)
COUNTERPARTS = {
    keras.layers.Dense: PSPDense,
    keras.layers.Conv1D: PSPConv1D,
    keras.layers.Conv2D: PSPConv2D,
    keras.layers.Conv3D: PSPConv3D,
    keras.layers.DepthwiseConv1D: TaskDepthwiseConv1D,
    keras.layers.DepthwiseConv2D: TaskDepthwiseConv2D,
    keras.layers.EinsumDense: PSPEinsumDense,
    keras.layers.MultiHeadAttention: PSPMultiHeadAttention,
    keras.layers.GroupQueryAttention: PSPGroupQueryAttention,
    keras.layers.BatchNormalization: TaskBatchNormalization,
    keras.layers.LayerNormalization: TaskLayerNormalization,
    keras.layers.RMSNormalization: TaskRMSNormalization,
}
# Those that stand for a layer only where each task is to have its own.
OWN_COUNTERPARTS = {
    keras.layers.Embedding: TaskEmbedding,
    keras.layers.ReversibleEmbedding: TaskReversibleEmbedding,
}
PLAIN = {
    **{ours: plain for plain, ours in (COUNTERPARTS | OWN_COUNTERPARTS).items()},
    PSPComplexDense: keras.layers.Dense,
    TaskDense: keras.layers.Dense,
}


def leaf_layers(
    layers: Iterable[keras.layers.Layer],
) -> list[keras.layers.Layer]:
    """Returns the layers that hold these layers' weights.

    These are the layers themselves, or the projections of an attention.
    """
    found: list[Any] = []
    for layer in layers:
        kind = PLAIN.get(type(layer), type(layer))
        is_attention = issubclass(COUNTERPARTS.get(kind, object), SuperposedAttention)
        found += projections(layer) if is_attention else [layer]
    return found


def can_convert(layer: keras.layers.Layer, in_parts: bool = False) -> bool:
    """Returns whether a Keras layer has a counterpart here. Subclasses have none.

    Args:
        layer: Keras layer.
        in_parts: Whether kernels are to be sums of a base, cores and low rank alone,
            which convolutions with groups of filters have none of.
    """
    kind = type(layer)
    counterpart = COUNTERPARTS.get(kind)
    if counterpart is None or not layer.built:
        return False
    if issubclass(counterpart, SuperposedAttention):
        return all(map(can_convert, leaf_layers([layer])))
    if in_parts and has_groups(layer):
        return False
    if kind is keras.layers.BatchNormalization:
        return not (layer.renorm or layer.synchronized)
    if kind in (keras.layers.LayerNormalization, keras.layers.RMSNormalization):
        last = len(layer.get_build_config()["input_shape"]) - 1
        rms_scaling = getattr(layer, "rms_scaling", False)
        return not rms_scaling and layer.axis in (-1, [-1], last, [last])
    # A constraint would act on what is added to a kernel, not on their sum.
    if issubclass(counterpart, Superposed) and layer.kernel_constraint is not None:
        return False
    if kind is keras.layers.EinsumDense:
        rank = len(layer.get_build_config()["input_shape"])
        if not sums_over_inputs(layer.equation, rank):
            return False
    # An activation with weights, or one that may get some when it is built, is a layer
    # that needs a counterpart itself.
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer):
        return activation.built and not activation.weights
    return True


def has_groups(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer has groups of filters, which see other channels each."""
    return getattr(layer, "groups", 1) > 1


def least_side(layer: keras.layers.Layer) -> int:
    """Returns how great a rank a layer's kernels can have; 1 if it has none."""
    sides = [1]
    for leaf in leaf_layers([layer]):
        kernel: Any = getattr(leaf, "kernel", None)
        if not issubclass(COUNTERPARTS.get(type(leaf), object), Superposed):
            continue
        if isinstance(leaf, keras.layers.EinsumDense):
            inputs, kernel_axes, outputs = re.split(",|->", leaf.equation)
            pairs = list(zip(kernel_axes, kernel.shape, strict=True))
            rows = math.prod(size for axis, size in pairs if axis not in outputs)
        else:
            rows = math.prod(kernel.shape[:-1])
        sides.append(min(rows, math.prod(kernel.shape) // rows))
    return min(sides[1:] or sides)


def check_context(context: str | Context | None, context_over: str) -> int:
    """Returns the seed of `context`; raises if `context_over` is unknown."""
    check_name("context_over", context_over, CONTEXT_OVER)
    return context.seed if isinstance(context, Context) else 0


def is_altered(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer's kernel is quantized or has a LoRA."""
    return any(
        getattr(part, "quantization_mode", None) is not None
        or getattr(part, "lora_enabled", False)
        for part in leaf_layers([layer])
    )


def make_superposed(
    layer: keras.layers.Layer,
    num_tasks: int,
    new_context: Callable[[], Context | None],
    base: bool,
    context_over: str,
    rank: int | str | None = None,
    core: Any = None,
    bits: Any = None,
) -> keras.layers.Layer:
    """Returns the counterpart of a Keras layer, not built.

    Args:
        layer: Keras layer for which `can_convert()` is true.
        num_tasks: Positive integer.
        new_context: Function that returns a new context for one more layer, or `None`
            for a layer without a superposed kernel.
        base: Whether the counterpart has a base kernel.
        context_over: What a convolution's context acts on, see `PSPConv2D`. Groups of
            filters always bind their kernels.
        rank: See `PSPDense`, for the layers that have kernels.
        core: As `rank`.
        bits: As `rank`.
    """
    config = {**get_config(layer), "num_tasks": num_tasks}
    counterpart: Any = COUNTERPARTS[type(layer)]
    if issubclass(counterpart, (Superposed, SuperposedAttention)):
        config |= {"context": new_context(), "base": base, "bias_per_task": True}
        config |= {"rank": rank, "core": core, "bits": bits}
        if has_groups(layer):
            config |= {"rank": None, "core": None, "bits": None}
        elif issubclass(counterpart, SuperposedConv):
            config["context_over"] = context_over
    elif counterpart is TaskBatchNormalization:
        config["affine_per_task"] = True
    elif counterpart in (TaskLayerNormalization, TaskRMSNormalization):
        config["axis"] = -1
    return counterpart.from_config(config)


def has_own_counterpart(layer: keras.layers.Layer) -> bool:
    """Returns whether `make_own()` knows a layer that each task is to have its own of.

    Others of which tasks have their own keep copies of their weights.
    """
    return _own_kind(layer) in OWN_COUNTERPARTS and not is_altered(layer)


def _own_kind(layer):
    """A layer's class, or Keras' class if it adds nothing to that, as KerasHub's do."""
    kind = type(layer)
    while kind not in OWN_COUNTERPARTS and not any(map(callable, vars(kind).values())):
        (kind,) = kind.__bases__
    return kind


def make_own(layer: keras.layers.Layer, num_tasks: int) -> Any:
    """Returns the counterpart of a layer with all its weights for each task, not built.

    Args:
        layer: Keras layer for which `has_own_counterpart()` is true.
        num_tasks: Positive integer.
    """
    kind: Any = OWN_COUNTERPARTS[_own_kind(layer)]
    return kind.from_config({**get_config(layer), "num_tasks": num_tasks})


def make_task_dense(layer: keras.layers.Layer, num_tasks: int) -> TaskDense:
    """Returns a `TaskDense` for a Keras `Dense`, not built."""
    return TaskDense.from_config({**get_config(layer), "num_tasks": num_tasks})


def make_plain(
    layer: keras.layers.Layer, task: int, is_whole: bool = False
) -> keras.layers.Layer:
    """Returns the Keras layer that computes what a layer does for one task, built.

    Args:
        layer: A layer that takes a task, built.
        task: Integer in `[0, num_tasks)`.
        is_whole: Whether it has outputs too that other tasks alone have.

    Raises:
        ValueError: The layer has no counterpart, is quantized or has a LoRA.
    """
    if isinstance(layer, TaskCopies):
        plain = layer.original()
        plain.set_weights([ops.convert_to_numpy(w[task]) for w in layer.task_weights])
        return plain
    plain = PLAIN.get(type(layer))
    if plain is None or is_altered(layer):
        raise ValueError(
            "One task's layer can be had of "
            f"{', '.join(kind.__name__ for kind in PLAIN)}, without quantization or "
            f"LoRA. Received: {layer.name!r}, a {type(layer).__name__}"
        )
    config = {k: v for k, v in get_config(layer).items() if k not in OURS}
    if isinstance(layer, PSPComplexDense):
        config["units"] *= 2
    units = config.get("units")
    if isinstance(layer, TaskUnits) and not is_whole:
        config["units"] = units = layer.units_of(task)
    plain = plain.from_config(config)
    plain.build_from_config(layer.get_build_config())
    for ours, theirs in zip(leaf_layers([layer]), leaf_layers([plain]), strict=True):
        kernel = [ours.task_kernel(task)] if isinstance(ours, Superposed) else []
        rows = [weight[task] if own else weight for weight, own in _rows_of(ours)]
        values = [ops.convert_to_numpy(weight) for weight in (*kernel, *rows)]
        if units is not None:
            values = [value[..., :units] for value in values]
        theirs.set_weights(values)
        copy_flags(_weights_of(ours), theirs.weights)
    return plain


def set_task_weights(
    layer: keras.layers.Layer,
    plain: Sequence[keras.layers.Layer],
    tasks: Sequence[int] | None = None,
) -> None:
    """Gives tasks the weights of plain layers, except for what tasks share.

    Args:
        layer: A layer that has a counterpart, or one of its `leaf_layers()`, built.
        plain: List of a Keras layer for each of the tasks.
        tasks: These tasks. By default the first ones, of a new layer, whose weights
            are then trainable if the plain layer's are.
    """
    for weight, own, values in _pairs(layer, plain):
        if own:
            rows = ops.convert_to_numpy(weight).copy()
            rows[range(len(plain)) if tasks is None else tasks] = values
            weight.assign(rows)
    if tasks is None:
        copy_flags(plain[0].weights, _weights_of(layer))


def set_new_rows(layer: keras.layers.Layer, plain: keras.layers.Layer) -> None:
    """Lets tasks that are added later begin with the weights of a plain layer.

    Args:
        layer: A layer that has a counterpart, or one of its `leaf_layers()`, built.
        plain: Keras layer.
    """
    holder: Any = layer.task_bias if isinstance(layer, Superposed) else layer
    for weight, own, values in _pairs(layer, [plain]):
        if own:
            holder.set_new_row(weight, values[0])


def differs(
    layer: keras.layers.Layer,
    plain: Sequence[keras.layers.Layer],
    own: bool,
    tasks: Sequence[int] = (),
) -> bool:
    """Returns whether plain layers have other weights than a layer, kernels aside.

    Args:
        layer: A layer that has a counterpart, or one of its `leaf_layers()`, built.
        plain: List of Keras layers.
        own: Whether to compare the rows of tasks, or else what tasks share.
        tasks: The tasks that the plain layers are compared with, if `own`.
    """
    return any(
        not np.array_equal(values, each[tasks] if own else [each] * len(plain))
        for each, is_own, values in (
            (ops.convert_to_numpy(weight), is_own, values)
            for weight, is_own, values in _pairs(layer, plain)
        )
        if is_own == own
    )


def _pairs(layer, plain):
    """A layer's weights beside a superposed kernel, and a list of plain layers'.

    Yields `(weight, own, values)`: whether it has a row for each task.
    """
    start = 1 if isinstance(layer, Superposed) else 0
    values = zip(*(each.get_weights()[start:] for each in plain), strict=True)
    for (weight, own), each in zip(_rows_of(layer), values, strict=True):
        yield weight, own, np.stack(each)


def copy_flags(weights: Sequence[Any], copies: Sequence[Any]) -> None:
    """Makes the copies of weights trainable, or not, as the weights are."""
    for weight, copy in zip(weights, copies, strict=True):
        # A complex kernel is made of two weights, others of a base and low rank.
        if hasattr(weight, "trainable") and copy is not None:
            copy.trainable = weight.trainable


def _weights_of(layer):
    """A layer's weights, in the order of Keras' layer."""
    kernel = [layer.kernel] if isinstance(layer, Superposed) else []
    return [*kernel, *(weight for weight, _ in _rows_of(layer))]


def _rows_of(layer):
    """A layer's weights beside a superposed kernel, in the order of Keras' layer.

    Returns a list of `(weight, own)`: whether it has a row for each task.
    """
    if isinstance(layer, Superposed):
        if layer.task_bias is not None:
            return [(layer.task_bias.bias, True)]
        return [] if layer.bias is None else [(layer.bias, False)]
    if not isinstance(layer, TaskBatchNormalization):
        return [(weight, True) for weight in layer.plain_weights]
    weights = [
        (layer.gamma if layer.scale else None, layer.affine_per_task),
        (layer.beta if layer.center else None, layer.affine_per_task),
        (layer.moving_mean, True),
        (layer.moving_variance, True),
    ]
    return [(weight, own) for weight, own in weights if weight is not None]
