"""What all plots of this package have in common."""

import base64
import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

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
    figure = _shown_class(Figure)(figsize=(width, height), layout="constrained")
    return figure


@functools.cache
def _shown_class(figure_class: Any) -> Any:
    class ShownFigure(figure_class):
        """A figure that any notebook shows, whether or not pyplot is imported."""

        def _repr_png_(self) -> bytes:
            return save(self, "png")

    return ShownFigure


def save(figure: "Figure", kind: str) -> bytes:
    """Returns the content of a file of this kind: `"png"`, `"pdf"` or `"svg"`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def html_figure(plot: Callable[[], "Figure"]) -> str:
    """Returns a plot as HTML, or what it needs if Matplotlib is not installed."""
    try:
        figure = plot()
    except ModuleNotFoundError as error:
        return f"<p>{error}</p>"
    content = base64.b64encode(save(figure, "png")).decode()
    said = 'alt="The same as a plot" style="max-width: 100%; background: white"'
    return f'<p><img {said} src="data:image/png;base64,{content}"></p>'


def draw_matrix(axis: Any, matrix: np.ndarray) -> Any:
    """Draws an accuracy matrix in percent, and returns its image."""
    trained = "task" if len(matrix) == matrix.shape[1] else "visit"
    # cividis looks the same to people who are colour-blind.
    image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axis.set(xlabel="accuracy on task", ylabel=f"after training {trained}")
    for locator in (axis.xaxis, axis.yaxis):
        locator.get_major_locator().set_params(integer=True)
    if len(matrix) > 12:
        return image  # Numbers would be too small to read.
    for i, j in np.argwhere(~np.isnan(matrix)):
        color = "white" if matrix[i, j] < 50 else "black"
        text = f"{matrix[i, j]:.0f}"
        axis.text(j, i, text, ha="center", va="center", color=color, fontsize=7)
    return image


def line_style(i: int) -> dict[str, Any]:
    """Returns colour and style of line number `i`; styles change after all colours."""
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": _STYLES[i // len(COLORS) % len(_STYLES)],
    }
