"""What all plots of this package have in common."""

from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people who are colour-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty Matplotlib figure; its size is in inches.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Plots need Matplotlib. Install it with: pip install matplotlib, or, with "
            'all that a report needs: pip install "keras-psp[plots]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def line_style(i: int) -> dict[str, Any]:
    """Returns colour and style of line number `i`; styles change after all colours."""
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": _STYLES[i // len(COLORS) % len(_STYLES)],
    }
