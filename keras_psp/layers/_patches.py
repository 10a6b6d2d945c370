"""Patches: the inputs that a filter meets at each place."""

import itertools
from typing import Any

from keras import ops


def patches(inputs: Any, layer: Any) -> Any:
    """Returns what a convolution multiplies with each place of its filters.

    Args:
        inputs: Tensor of shape `(batch, *sizes, channels)`.
        layer: Keras convolution of that rank.

    Returns:
        List of tensors of shape `(batch, *new_sizes, channels)`, in the order of the
        kernel's numbers.
    """
    sizes, padding = [], []
    for axis in range(layer.rank):
        size, stride = ops.shape(inputs)[1 + axis], layer.strides[axis]
        span = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
        if layer.padding == "same":
            sizes.append((size + stride - 1) // stride)
            missing = (sizes[-1] - 1) * stride + span - size
            if stride > 1:
                missing = _at_least_zero(missing)
            padding.append((missing // 2, missing - missing // 2))
        else:
            before = span - 1 if layer.padding == "causal" else 0
            sizes.append((size + before - span) // stride + 1)
            padding.append((before, 0))
    inputs = ops.pad(inputs, ((0, 0), *padding, (0, 0)))
    places = itertools.product(*map(range, layer.kernel_size))
    return [
        inputs[
            (
                slice(None),
                *(
                    slice(p * d, p * d + (n - 1) * s + 1, s)
                    for p, d, n, s in zip(
                        place, layer.dilation_rate, sizes, layer.strides, strict=True
                    )
                ),
            )
        ]
        for place in places
    ]


def _at_least_zero(size):
    return max(size, 0) if isinstance(size, int) else ops.maximum(size, 0)
