"""What all results have in common that are rows of figures."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import ClassVar

from keras_psp._core.figures import html_figure


class Shown:
    """What a notebook shows as a table and a plot; `rows` and `plot()` are its own."""

    rows: Sequence[dict[str, Any]]

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` of the rows.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return to_pandas(self.rows)

    def plot(self, path: Any = None) -> Any:
        """Draws what there is to see; returns a Matplotlib figure."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Returns what a notebook shows; without Matplotlib the table alone."""
        return html_table(self.rows) + html_figure(self.plot)


@dataclass(frozen=True)
class Table(Shown):
    """Rows of figures; as text, and in a notebook, a table.

    Attributes:
        rows: Tuple of a dictionary for each row.
    """

    rows: tuple

    # The columns that say what a row is of.
    _labels: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        names = [name for name in names if name not in self._labels]
        labels = [", ".join(str(row[x]) for x in self._labels) for row in self.rows]
        width = max(map(len, labels), default=0)
        lines = [" " * width + "".join(f"  {name:>12}" for name in names)]
        for label, row in zip(labels, self.rows, strict=True):
            figures = "".join(f"  {_cell(row.get(name)):>12}" for name in names)
            lines.append(f"{label:{width}}{figures}")
        return "\n".join(lines)


def to_pandas(rows: Sequence[dict[str, Any]]) -> Any:
    """Returns a `pandas.DataFrame` of rows.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This needs pandas. Install it with: pip install pandas"
        ) from error
    return pandas.DataFrame(list(rows))


def html_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows as an HTML table; `**` around a cell makes it bold."""
    cells = [list(dict.fromkeys(name for row in rows for name in row))]
    cells += [[_cell(row.get(name)) for name in cells[0]] for row in rows]
    head, *body = (
        "".join(f"<{tag}>{_bold(html.escape(cell))}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(rows), cells, strict=True)
    )
    lines = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _bold(cell: str) -> str:
    if cell.startswith("**") and cell.endswith("**"):
        return f"<strong>{cell[2:-2]}</strong>"
    return cell


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
