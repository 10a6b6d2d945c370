"""A word, once, to those whose optimizer moves the weights of absent tasks."""

import warnings
import weakref
from typing import Any

import keras

from keras_psp._core.task_rows import is_task_rows
from keras_psp.optimizers._around import chain_of
from keras_psp.optimizers._around import find_in_chain
from keras_psp.optimizers.per_task import PerTask

_told: weakref.WeakSet = weakref.WeakSet()


def advise(model: keras.Model, optimizer: Any) -> None:
    """Warns, once for each model, if `PerTask` is missing around its optimizer.

    Args:
        model: A model that is compiled.
        optimizer: Its `keras.optimizers.Optimizer`, or `None`.
    """
    rows = [v for v in model.trainable_variables if is_task_rows(v)]
    if optimizer is None or not rows or model in _told:
        return
    if find_in_chain(optimizer, lambda each: isinstance(each, PerTask)):
        return
    reason = _find_reason(chain_of(optimizer)[-1], rows)
    if reason is None:
        return
    _told.add(model)
    warnings.warn(
        f"{model.name!r} has weights of its own for each task, and its optimizer's "
        f"{reason} will also move those of tasks without an example in the batch. "
        "`keras_psp.optimizers.PerTask(optimizer)` lets them stand still.",
        stacklevel=3,
    )


def _find_reason(optimizer: Any, rows: list) -> str | None:
    """What moves rows without a gradient, or changes what is kept for them."""
    if getattr(optimizer, "momentum", 0):
        return "momentum"
    if optimizer.weight_decay:
        return "weight decay"
    if optimizer.use_ema:
        return "moving average"
    if not isinstance(optimizer, keras.optimizers.SGD):
        return "moments"
    if any(v.regularizer is not None for v in rows):
        return "loss, by its regularizers,"
    return None
