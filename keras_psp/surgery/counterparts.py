"""Which layer of this package stands for which of Keras', and the way back."""

import keras
import numpy as np
from keras import ops

from keras_psp.contexts import Context
from keras_psp.layers import PSPComplexDense
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskLayerNormalization
from keras_psp.layers.superposed import Superposed
from keras_psp.layers.superposed_conv import CONTEXT_OVER
from keras_psp.layers.superposed_conv import SuperposedConv
from keras_psp.names import check_name

# The arguments that Keras' layers do not have.
OURS = (
    "num_tasks",
    "context",
    "context_over",
    "base",
    "bias_per_task",
    "affine_per_task",
)
COUNTERPARTS = {
    keras.layers.Dense: PSPDense,
    keras.layers.Conv2D: PSPConv2D,
    keras.layers.EinsumDense: PSPEinsumDense,
    keras.layers.BatchNormalization: TaskBatchNormalization,
    keras.layers.LayerNormalization: TaskLayerNormalization,
}
PLAIN = {
    **{ours: plain for plain, ours in COUNTERPARTS.items()},
    PSPComplexDense: keras.layers.Dense,
    TaskDense: keras.layers.Dense,
}


def can_convert(layer):
    """Whether a Keras layer has a counterpart here; subclasses have none, for one."""
    kind = type(layer)
    if kind is keras.layers.BatchNormalization:
        return not (layer.renorm or layer.synchronized)
    if kind is keras.layers.LayerNormalization:
        last = len(layer.get_build_config()["input_shape"]) - 1
        return not layer.rms_scaling and layer.axis in (-1, [-1], last, [last])
    # A constraint would hold for what is added to a kernel. And an activation that has
    # weights, or is to have some once it is built, is a layer by itself.
    if kind not in COUNTERPARTS or layer.kernel_constraint is not None:
        return False
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer):
        return activation.built and not activation.weights
    return True


def check_context(context, context_over):
    """Returns the seed of a `context` argument; raises if the other one is wrong."""
    check_name("context_over", context_over, CONTEXT_OVER)
    return context.seed if isinstance(context, Context) else 0


def is_altered(layer):
    """Whether a layer's kernel is quantized, or the sum of a kernel and a LoRA."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return quantized or getattr(layer, "lora_enabled", False)


def make_superposed(layer, num_tasks, new_context, base, context_over):
    """Returns the counterpart of a Keras layer, not built.

    Args:
        layer: Keras layer, of which `can_convert()`.
        num_tasks: Positive integer.
        new_context: Function that returns a context of its own for one more layer.
        base: Boolean, whether it is to have a base kernel.
        context_over: What a convolution's context acts on, see `PSPConv2D`. Of groups
            of filters always their kernels.
    """
    config = {**layer.get_config(), "num_tasks": num_tasks}
    counterpart = COUNTERPARTS[type(layer)]
    if issubclass(counterpart, Superposed):
        config |= {"context": new_context(), "base": base, "bias_per_task": True}
        if issubclass(counterpart, SuperposedConv) and layer.groups == 1:
            config["context_over"] = context_over
    elif counterpart is TaskBatchNormalization:
        config["affine_per_task"] = True
    else:
        config["axis"] = -1
    return counterpart.from_config(config)


def make_plain(layer, task):
    """Returns the Keras layer that a layer of this package is for one task, built.

    Args:
        layer: A layer that takes a task, built.
        task: Integer in `[0, num_tasks)`.

    Raises:
        ValueError: The layer has no counterpart, is quantized or has a LoRA.
    """
    plain = PLAIN.get(type(layer))
    if plain is None or is_altered(layer):
        raise ValueError(
            "One task's layer can be had of "
            f"{', '.join(kind.__name__ for kind in PLAIN)}, without quantization or "
            f"LoRA. Received: {layer.name!r}, a {type(layer).__name__}"
        )
    config = {k: v for k, v in layer.get_config().items() if k not in OURS}
    if isinstance(layer, PSPComplexDense):
        config["units"] *= 2
    plain = plain.from_config(config)
    plain.build_from_config(layer.get_build_config())
    kernel = [layer.task_kernel(task)] if isinstance(layer, Superposed) else []
    rows = [weight[task] if own else weight for weight, own in _rows_of(layer)]
    plain.set_weights([ops.convert_to_numpy(weight) for weight in (*kernel, *rows)])
    return plain


def set_task_weights(layer, plain, first=0):
    """Gives tasks the weights of plain layers, but for what tasks share.

    Args:
        layer: A layer that has a counterpart, built.
        plain: List of a Keras layer for each of the tasks.
        first: Integer, the first of these.
    """
    for weight, own, values in _pairs(layer, plain):
        if own:
            rows = ops.convert_to_numpy(weight).copy()
            rows[first : first + len(plain)] = values
            weight.assign(rows)


def differs(layer, plain, own, first=0):
    """Whether plain layers' weights are others than a layer's, but for its kernel.

    Args:
        layer: A layer that has a counterpart, built.
        plain: List of a Keras layer for each of some consecutive tasks.
        own: Boolean, whether to compare what is each task's own, or what tasks share.
        first: Integer, the first of the tasks.
    """
    return any(
        not np.array_equal(
            values, each[first : first + len(plain)] if own else [each] * len(plain)
        )
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


def _rows_of(layer):
    """A layer's weights beside a superposed kernel, in the order of Keras' layer.

    Returns a list of `(weight, own)`: whether it has a row for each task.
    """
    if isinstance(layer, Superposed):
        if layer.task_bias is not None:
            return [(layer.task_bias.bias, True)]
        return [] if layer.bias is None else [(layer.bias, False)]
    if isinstance(layer, TaskDense):
        weights = [(layer.kernel, True), (layer.bias, True)]
    else:
        own = getattr(layer, "affine_per_task", True)
        weights = [
            (layer.gamma if layer.scale else None, own),
            (layer.beta if layer.center else None, own),
            *(
                (getattr(layer, name, None), True)
                for name in ("moving_mean", "moving_variance")
            ),
        ]
    return [(weight, own) for weight, own in weights if weight is not None]
