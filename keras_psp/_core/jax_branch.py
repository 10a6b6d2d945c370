"""Branches, and convolutions within them, that XLA compiles well for a CPU."""

import functools

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.core import jaxpr_as_fun


def cond(uniform, one, mixed):
    """Returns `one()` or `mixed()`, with gradients that keep nothing of either.

    JAX's own for `cond` keep what those of both branches need, zeros for the one not
    taken. Here they compute the branch that was taken anew; what its gradients do not
    need of that, XLA leaves out.
    """
    # All that they use must come in by the front door: a backward pass may be traced
    # where what they have closed over is not known any more, as in an export.
    (one, of_one), (mixed, of_mixed) = map(_open_up, (one, mixed))

    @jax.custom_vjp
    def run(uniform, of_one, of_mixed):
        return lax.cond(uniform, lambda: one(*of_one), lambda: mixed(*of_mixed))

    def forward(uniform, of_one, of_mixed):
        return run(uniform, of_one, of_mixed), (uniform, of_one, of_mixed)

    def backward(operands, gradient):
        uniform, of_one, of_mixed = operands
        gradients = lax.cond(
            uniform,
            lambda: (_pull_back(one, of_one, gradient), _zeros(of_mixed)),
            lambda: (_zeros(of_one), _pull_back(mixed, of_mixed, gradient)),
        )
        return None, *((floats, None) for floats in gradients)

    run.defvjp(forward, backward)
    return run(uniform, of_one, of_mixed)


def _open_up(function):
    """Returns a function of what another has closed over, and that.

    It has two arguments, lists of what is of a float dtype and of the others.
    """
    closed = jax.make_jaxpr(function)()
    is_float = [
        jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in closed.consts
    ]

    def call(floats, others):
        floats, others = iter(floats), iter(others)
        values = [next(floats if which else others) for which in is_float]
        (result,) = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, values))()
        return result

    floats, others = (
        [x for x, which in zip(closed.consts, is_float, strict=True) if which == wanted]
        for wanted in (True, False)
    )
    return call, (floats, others)


def _pull_back(function, operands, gradient):
    floats, others = operands
    return jax.vjp(lambda floats: function(floats, others), floats)[1](gradient)[0]


def _zeros(operands):
    return jax.tree.map(jax.numpy.zeros_like, operands[0])


def convolve(inputs, kernel, strides, padding, dilation_rate):
    """A convolution, channels last, whose gradients are written as convolutions too.

    JAX writes them with other orders of dimensions, which XLA sorts out in a program's
    outermost part alone: inside a branch on a CPU they become 30 times slower.

    Args:
        inputs: Tensor of shape `(batch, *sizes, in)`.
        kernel: Tensor of shape `(*kernel_size, in / groups, filters)`.
        strides: Integers, one for each of `sizes`, as `dilation_rate`.
        padding: `"same"` or `"valid"`.
        dilation_rate: Integers.

    Returns:
        Tensor of shape `(batch, *places, filters)`.
    """
    rank = len(strides)
    names = "HWD"[:rank]
    order = (f"N{names}C", f"{names}IO", f"N{names}C")
    groups = inputs.shape[-1] // kernel.shape[-2]
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=order)

    @jax.custom_vjp
    def run(inputs, kernel):
        return conv(
            inputs,
            kernel,
            strides,
            padding.upper(),
            rhs_dilation=dilation_rate,
            feature_group_count=groups,
        )

    def forward(inputs, kernel):
        return run(inputs, kernel), (inputs, kernel)

    def backward(saved, gradient):
        inputs, kernel = saved
        sizes = inputs.shape[1:-1]
        spans = [
            (n - 1) * d + 1
            for n, d in zip(kernel.shape[:rank], dilation_rate, strict=True)
        ]
        pads = lax.padtype_to_pads(sizes, spans, strides, padding.upper())
        # How far the filters reach, and what the gradient lacks on both sides for each
        # number of the inputs to meet each of a filter's.
        reach = [
            (n - 1) * s + span
            for n, s, span in zip(gradient.shape[1:-1], strides, spans, strict=True)
        ]
        lacks = [
            (span - 1 - low, size + low - end + span - 1)
            for span, (low, _), size, end in zip(spans, pads, sizes, reach, strict=True)
        ]
        margins = [
            (low, end - size - low)
            for (low, _), size, end in zip(pads, sizes, reach, strict=True)
        ]
        # To each filter's inputs by way of all filters of its group.
        turned = kernel[(slice(None, None, -1),) * rank]
        turned = turned.reshape(*turned.shape[:-1], groups, -1)
        turned = jax.numpy.swapaxes(turned, -1, -3)
        turned = turned.reshape(*turned.shape[: rank + 1], -1)
        of_inputs = conv(
            gradient,
            turned,
            (1,) * rank,
            lacks,
            lhs_dilation=strides,
            rhs_dilation=dilation_rate,
            feature_group_count=groups,
        )
        # The examples are what is summed over: they take the place of the channels.
        of_kernel = conv(
            jax.numpy.swapaxes(inputs, 0, -1),
            jax.numpy.moveaxis(gradient, 0, rank),
            dilation_rate,
            margins,
            rhs_dilation=strides,
            batch_group_count=groups,
        )
        return of_inputs, jax.numpy.moveaxis(of_kernel, 0, rank)

    run.defvjp(forward, backward)
    return run(inputs, kernel)
