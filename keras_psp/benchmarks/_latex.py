"""The tables of a report in LaTeX, for the package booktabs."""

import re
from collections.abc import Sequence
from typing import Any

# The columns for which a page has room.
SHOWN = (
    *("system", "runs", "average %", "task 0 %", "just trained %", "forgetting %"),
    *("weights", "trial"),
)
_CODES = {
    **{x: rf"\{x}" for x in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "—": "---",
}


def write_latex(sections: Sequence[dict[str, Any]]) -> str:
    """Returns a table for each section of a report.

    The commands that repeat it are comments above it.
    """
    return "\n".join(_table(section) for section in sections)


def _table(section: dict[str, Any]) -> str:
    columns = [name for name in section["rows"][0] if name in SHOWN]
    rows = [[_escape(row[name]) for name in columns] for row in section["rows"]]
    return "\n".join(
        [
            *("% " + re.sub(r"\s+", " ", line) for line in section["commands"]),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(section['title'])}. {_escape(section['note'])}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            " & ".join(_escape(name) for name in columns) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", text)
    if bold:
        return rf"\textbf{{{_escape(bold[1])}}}"
    text = re.sub(r"\s+", " ", text)
    return "".join(_CODES.get(x, x) for x in text)
