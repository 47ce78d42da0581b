"""Results as CSV: nested documents as flat rows.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from csv import DictWriter
from io import StringIO

from sequoia_opt.cli.output import plain


def print_csv(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows that have the same columns, with a header."""
    lines = StringIO()
    sheet = DictWriter(lines, rows[0], lineterminator="\n")
    sheet.writeheader()
    sheet.writerows(rows)
    plain(lines.getvalue(), end="")


def flat(document: Mapping[str, object]) -> dict[str, object]:
    """A document's numbers and texts as one row.

    A part's entries get its name as a prefix. What is nested deeper, as trees are, is left out.
    """
    row: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            parts = {name: inner for name, inner in value.items() if not isinstance(inner, Mapping)}
            row |= {f"{key}_{name}": inner for name, inner in parts.items()}
        else:
            row[key] = value
    return row
