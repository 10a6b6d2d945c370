"""Warns once if an optimizer moves what absent tasks need."""

import warnings
import weakref
from typing import Any

import keras

from keras_psp._core.advice import OFF
from keras_psp._core.advice import InterferenceWarning
from keras_psp._core.task_rows import is_task_rows
from keras_psp.optimizers._around import chain_of
from keras_psp.optimizers._around import find_in_chain
from keras_psp.optimizers.per_task import PerTask

_told: weakref.WeakSet = weakref.WeakSet()
# The tasks that each model was trained on, and the models that were told of these.
_trained: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_told_of_earlier: weakref.WeakSet = weakref.WeakSet()


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


def advise_of_earlier_tasks(model: Any, optimizer: Any, tasks: set[int]) -> None:
    """Warns, once for each model, if a task is trained alone after others.

    That is, without a consolidation, and by weights that they share.

    Args:
        model: A model that takes tasks and is compiled.
        optimizer: Its `keras.optimizers.Optimizer`, or `None`.
        tasks: The indices of the tasks that it is to be trained on, as far as known.
    """
    earlier = sorted(_trained.get(model, set()) - tasks - {*model.removed_tasks})
    if optimizer is None or len(tasks) != 1 or not earlier or model in _told_of_earlier:
        return
    if find_in_chain(optimizer, lambda each: hasattr(each, "end_task")):
        return
    if all(is_task_rows(v) for v in model.trainable_variables):
        return
    _told_of_earlier.add(model)
    names = model.task_names
    (task,) = tasks
    words = [f"{k if names is None else names[k]!r}" for k in (*earlier[:3], task)]
    tasks_before = "tasks" if len(earlier) > 1 else "task"
    others = f" and {len(earlier) - 3} others" if len(earlier) > 3 else ""
    warnings.warn(
        f"Tasks will disturb each other: task {words[-1]} is trained alone, after "
        f"{tasks_before} {', '.join(words[:-1])}{others}, by weights that these share. "
        "They stay near what earlier tasks need with "
        "`keras_psp.consolidation.Gram(optimizer)` and "
        "`model.optimizer.end_task(model, (x, y))` after each task. If the data of all "
        "tasks are at hand, train on mixed batches in one `fit()`. "
        f"`keras_psp.evaluate` measures what is kept. {OFF}",
        InterferenceWarning,
        stacklevel=3,
    )


def note_trained(model: Any, tasks: set[int]) -> None:
    """Notes for `advise_of_earlier_tasks()` which tasks a model was trained on."""
    _trained.setdefault(model, set()).update(tasks)


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
