"""Branches that TensorFlow can differentiate under XLA, its default on a GPU."""

import tensorflow as tf

from keras_psp._core.private import autocast


def cond(uniform, one, mixed):
    """Returns `one()` or `mixed()`, with gradients that keep nothing of either.

    TensorFlow's own for `tf.cond` hand what both branches compute on to the backward
    pass, and something made up for the one not taken. XLA accepts neither lists, which
    loops keep, nor made up permutations. Here the branch that was taken is computed
    anew; what its gradients do not need of that is never run.
    """
    if tf.executing_eagerly():
        return one() if uniform else mixed()
    tensors = _closed_over(one, mixed)
    cast = autocast()

    # The tensors are arguments so that TensorFlow knows what the result depends on.
    @tf.custom_gradient
    def run(*_):
        def backward(upstream, variables=()):
            sources = [*tensors, *variables]

            def pull_back(function):
                with tf.GradientTape(watch_accessed_variables=False) as tape, cast():
                    tape.watch(sources)
                    outputs = function()
                gradients = tape.gradient(
                    outputs, sources, upstream, tf.UnconnectedGradients.ZERO
                )
                # One branch may have sparse ones, and both must return alike.
                return [tf.convert_to_tensor(gradient) for gradient in gradients]

            gradients = tf.cond(
                uniform, lambda: pull_back(one), lambda: pull_back(mixed)
            )
            of_tensors = gradients[: len(tensors)]
            return (of_tensors, gradients[len(tensors) :]) if variables else of_tensors

        return tf.cond(uniform, one, mixed), backward

    return run(*tensors)


def _closed_over(*functions):
    """Returns the float tensors that functions without arguments use, each once."""
    found = {}
    for function in functions:
        traced = tf.function(function, autograph=False).get_concrete_function()
        found |= {x.ref(): x for x in traced.captured_inputs if x.dtype.is_floating}
    return list(found.values())
