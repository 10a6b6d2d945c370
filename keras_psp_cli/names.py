"""The validator of names, here because the command uses it without importing Keras."""

import difflib
from collections.abc import Iterable


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is known, else raises and tells which are, and the nearest.

    Args:
        what: What the name is of, for the message.
        name: The name given.
        known: The names there are.

    Raises:
        ValueError: `name` is not among `known`.
    """
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    raise ValueError(
        f"Unknown {what}. Known: {', '.join(known)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + f" Received: {name!r}"
    )
