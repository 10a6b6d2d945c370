"""Keeps an optimizer's state when a model's weights get or lose rows."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_psp._core import private
from keras_psp.optimizers._around import chain_of


def grow_optimizer(
    optimizer: Any, old: list, new: list, rows: list[int | None]
) -> None:
    """Lets an optimizer go on after tasks were added to a model, or removed.

    The optimizer, any of Keras' or of this package's, is built for the new variables
    and takes over all that it kept for the old ones: iterations, moments, averages,
    anchors, importances, matrices. What it keeps for rows of new tasks is what it would
    be in an optimizer that has just been built.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, or `None`. If it is not built there
            is nothing to keep.
        old: The model's trainable variables before, those of the optimizer.
        new: The model's trainable variables now. Those that were replaced stand in the
            order of those that they replace.
        rows: For each row of the variables that were replaced the row that it was
            before, or `None` for a new task. To add a task to two: `[0, 1, None]`;
            to remove the first of three: `[1, 2]`; to forget the second of three and
            leave its row: `[0, None, 2]`.

    Raises:
        ValueError: The new variables do not match the old ones; nothing has changed.

    Example:

    >>> import keras
    >>> from keras_psp.optimizers._grow import grow_optimizer
    >>> adam = keras.optimizers.Adam()
    >>> before, after = (
    ...     keras.Variable(keras.ops.ones((n, 4))) for n in (2, 3)
    ... )
    >>> adam.apply([keras.ops.ones((2, 4))], [before])
    >>> grow_optimizer(adam, [before], [after], [0, 1, None])
    >>> int(adam.iterations), tuple(adam.variables[2].shape)
    (1, (3, 4))
    """
    check_can_grow(optimizer, old)
    if not _keeps_something(optimizer, old):
        return
    origins = _find_origins(old, new, len(rows))
    if [id(v) for v in old] == [id(v) for v in new]:
        return
    chain = chain_of(optimizer)
    if isinstance(chain[-1], keras.optimizers.MultiOptimizer):
        _grow_each(chain.pop(), old, new, origins, rows)
    if not chain:
        return
    kept = [
        (private.find_slots(each), private.find_scalars(each), dict(vars(each)))
        for each in chain
    ]
    replaced = [(old[k], new[i]) for i, (k, other) in enumerate(origins) if other]
    with private.rebuilding(chain, replaced):
        optimizer.build(new)
        for each, (slots, scalars, attributes) in zip(chain, kept, strict=True):
            averages = private.moving_averages(each)
            for name, found in private.find_slots(each).items():
                for i, (k, other) in enumerate(origins):
                    if found[i] is None:
                        continue
                    start = found[i]
                    if averages is not None and found[i] is averages[i]:
                        start = new[i]  # The average of a row without steps.
                    kept_slot = slots[name][k]
                    by_row = (
                        other
                        and _has_rows(start, kept_slot, old[k], new[i])
                        and not private.sums_over_rows(each, name, new[i])
                    )
                    values = _take_rows(start, kept_slot, rows if by_row else None)
                    found[i].assign(values)
            for name, variable in private.find_scalars(each).items():
                if variable is not scalars[name]:
                    variable.assign(scalars[name])
            if hasattr(each, "carry_over"):
                each.carry_over(attributes, origins, rows)


@contextlib.contextmanager
def moved_along(optimizer: Any, variables: list) -> Iterator[None]:
    """Lets what an optimizer keeps of weights' values follow what changes them inside.

    Else the next training would take them back, to averages or anchors from before.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, or `None`.
        variables: The model's trainable variables.
    """
    pairs = {}
    if _keeps_something(optimizer, variables):
        for each in _all_in(optimizer):
            of_each = private.trained_variables(each)
            for kept in (*private.kept_values(each), getattr(each, "anchors", ())):
                found = zip(kept, of_each, strict=False)
                pairs.update({id(k): (k, v) for k, v in found if k is not None})
    before = {id(v): ops.copy(v.value) for _, v in pairs.values()}
    yield
    for kept, variable in pairs.values():
        moved = ops.subtract(variable.value, before[id(variable)])
        kept.assign(ops.add(kept, ops.cast(moved, kept.dtype)))


def part_averages(optimizer: Any) -> None:
    """Gives averages of weights buffers of their own, on JAX.

    When `fit()` ends, Keras makes each one buffer with its weight, which the next
    `fit()` cannot hand over twice.
    """
    if keras.backend.backend() == "jax" and getattr(optimizer, "built", False):
        for each in _all_in(optimizer):
            for average in private.moving_averages(each) or ():
                average.assign(ops.copy(average.value))


def _keeps_something(optimizer: Any, variables: list) -> bool:
    """Whether an optimizer is built; what it has of a file, it is built with now."""
    if optimizer is None:
        return False
    if not optimizer.built and getattr(optimizer, "_loaded", None) is not None:
        optimizer.build(variables)
    return optimizer.built


def _all_in(optimizer: Any) -> list:
    """Returns an optimizer and all those inside it."""
    chain = chain_of(optimizer)
    if isinstance(chain[-1], keras.optimizers.MultiOptimizer):
        for each, _ in private.find_shares(chain[-1]):
            chain += _all_in(each)
    return chain


def _grow_each(
    optimizer: keras.optimizers.MultiOptimizer,
    old: list,
    new: list,
    origins: list[tuple[int, bool]],
    rows: list[int | None],
) -> None:
    """Grows the optimizers inside one, each for the weights that it trains."""
    chosen = {}
    for each, places in private.find_shares(optimizer):
        now = [v for v, (k, _) in zip(new, origins, strict=True) if k in places]
        grow_optimizer(each, [old[k] for k in places], now, rows)
        chosen.update({id(variable): each for variable in now})
    private.set_shares(optimizer, new, [chosen[id(variable)] for variable in new])


def check_can_grow(optimizer: Any, variables: list) -> None:
    """Raises a `ValueError` if an optimizer was built for other variables."""
    if optimizer is None or not optimizer.built:
        return
    trained = private.trained_variables(optimizer)
    if [id(v) for v in trained] != [id(v) for v in variables]:
        raise ValueError(
            "The optimizer was built for other variables; compile the model again. "
            f"Received: {len(variables)} variables, where it was built for "
            f"{len(trained)}"
        )


def _find_origins(old: list, new: list, num_rows: int) -> list[tuple[int, bool]]:
    """For each new variable, the index of the old one, and whether it replaces it."""
    places = {id(v): i for i, v in enumerate(old)}
    still = {id(v) for v in new}
    gone = [i for i, v in enumerate(old) if id(v) not in still]
    come = [v for v in new if id(v) not in places]
    fits = len(gone) == len(come) and all(
        tuple(v.shape) == (num_rows, *old[i].shape[1:])
        for i, v in zip(gone, come, strict=True)
    )
    if not fits:
        raise ValueError(
            "Each new variable must replace an old one, with other rows. Received: "
            f"{[tuple(v.shape) for v in come]} for "
            f"{[tuple(old[i].shape) for i in gone]}"
        )
    places.update({id(v): i for i, v in zip(gone, come, strict=True)})
    come_ids = {id(v) for v in come}
    return [(places[id(v)], id(v) in come_ids) for v in new]


def _has_rows(slot: Any, kept: Any, before: Any, variable: Any) -> bool:
    """Whether a slot of a variable that was replaced has a row for each of its rows."""
    if before.shape[0] != variable.shape[0]:
        return tuple(slot.shape) != tuple(kept.shape)
    return tuple(slot.shape[:1]) == (variable.shape[0],)


def _take_rows(start: Any, old: Any, rows: list[int | None] | None) -> Any:
    """The values of a slot: its start where nothing was kept, else the old ones."""
    before = ops.convert_to_numpy(old)
    if rows is None:
        return before
    values = ops.convert_to_numpy(start).copy()
    for i, row in enumerate(rows):
        if row is not None:
            values[i] = before[row]
    return values
