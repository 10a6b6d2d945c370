"""Keeps an optimizer's state when a model's weights get or lose rows."""

from typing import Any

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
    if optimizer is None:
        return
    if not optimizer.built:
        if getattr(optimizer, "_loaded", None) is None:
            return
        optimizer.build(old)  # With what a file has held.
    origins = _find_origins(old, new, len(rows))
    if [id(v) for v in old] == [id(v) for v in new]:
        return
    chain = chain_of(optimizer)
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
