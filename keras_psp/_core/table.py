"""What all results have in common that are rows of figures."""

import html
from dataclasses import dataclass
from typing import Any
from typing import ClassVar


@dataclass(frozen=True)
class Table:
    """Rows of figures; as text, and in a notebook, a table.

    Attributes:
        rows: Tuple of a dictionary for each row.
    """

    rows: tuple

    # The columns that say what a row is of.
    _labels: ClassVar[tuple[str, ...]] = ()

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` of the rows.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "This needs pandas. Install it with: pip install pandas"
            ) from error
        return pandas.DataFrame(list(self.rows))

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

    def _repr_html_(self) -> str:
        """Returns what a notebook shows."""
        cells = [list(dict.fromkeys(name for row in self.rows for name in row))]
        cells += [[_cell(row.get(name)) for name in cells[0]] for row in self.rows]
        head, *rows = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(["th"] + ["td"] * len(self.rows), cells, strict=True)
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
