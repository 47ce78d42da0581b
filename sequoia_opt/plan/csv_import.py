"""Measurements made elsewhere, from CSV: acceptance rates and latencies.

Knows the two tables and how to complain about a cell. What they become is checked there.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.files.documents import read_text
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import GREEDY, TOP_P, Curve, LatencyProfile, ModelLatency, Overhead
from sequoia_opt.types import FloatArray

LATENCY_COLUMNS = ("role", "batch", "context", "tokens", "ms")
ROLES = ("target", "draft")
BY = ("rank", "depth")  # what single rates follow one another by
_LABELS = {"rank": "rank", "k": "rank", "depth": "depth", "d": "depth", "level": "depth"}
RATES = ("acceptance", "accepted", "rate", "rates", "p", "probability")
_COLUMN = re.compile(r"(?P<kind>rank|k|p|depth|d)[ _]?[(\[]?(?P<number>\d{1,4})[)\]]?")
VERIFIERS = ("sequoia", "specinfer", "topk", "traversal")


def read_csv(path: str | Path) -> list[list[str]]:
    """The rows of a CSV file that are not empty.

    Raises:
        SequoiaError: it cannot be read, or has no rows.
    """
    try:
        rows = [[c.strip() for c in row] for row in csv.reader(read_text(path).splitlines())]
    except csv.Error as error:
        raise SequoiaError(f"{path}: not valid CSV ({one_line(error)})") from None
    rows = [row for row in rows if any(row)]
    if not rows:
        raise SequoiaError(f"{path}: no rows")
    return rows


def is_latency_table(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table's header is that of latencies, or means to be."""
    return len(set(rows[0]) & set(LATENCY_COLUMNS)) >= 2


def acceptance_rates(
    rows: Sequence[Sequence[str]], where: str, by: str | None = None
) -> FloatArray:
    """p[d][k] as [depths, ranks], of a row of ranks, or a row for each depth.

    A first row of words is a header: names of ranks or of depths (`rank 1`, `k2`, `p[3]`,
    `depth 1`, …), perhaps behind a first column that counts the others, `rank,acceptance`,
    `depth,acceptance` or `depth,rank 1,rank 2`. One column without such a header could be either.

    Args:
        by: "rank" or "depth", what single rates follow one another by, whatever the file says.

    Raises:
        SequoiaError: no numbers, rows of different lengths, rates that cannot be, a header of
            something else, or a column of which nothing says what it goes by.
    """
    header: list[str] = []
    if not any(_is_number(cell) for cell in rows[0]):
        header, rows = [cell.lower() for cell in rows[0]], rows[1:]
    if not rows:
        raise SequoiaError(f"{where}: no rows of rates")
    table = [
        [_number(cell, f"{where}: row {i}, rank {k}") for k, cell in enumerate(row, start=1)]
        for i, row in enumerate(rows, start=1)
    ]
    if len({len(row) for row in table}) != 1:
        raise SequoiaError(f"{where}: its rows differ in length")
    found = np.array(table)
    rows_are = None
    if len(header) > 1 and header[0] in _LABELS:
        rows_are, header, found = _LABELS[header[0]], header[1:], _in_order(found, where)
    columns_are = _kind(header, where) if header else None
    if rows_are is not None and rows_are == columns_are:
        raise SequoiaError(f"{where}: header: found {rows_are}s in rows and in columns")
    if 1 not in found.shape:
        is_turned = rows_are == "rank" or columns_are == "depth"
        found = found.T if is_turned else found
    elif kind := by or rows_are or columns_are:
        found = found.reshape((1, -1) if kind == "rank" else (-1, 1))
    elif len(found) > 1:
        raise SequoiaError(
            f"{where}: found a column of rates, which could be those of ranks 1, 2, 3 … or those "
            "of depths 1, 2, 3 …; say --rates-by rank or --rates-by depth"
        )
    for (depth, rank), rate in np.ndenumerate(found):
        if not 0 <= rate <= 1:
            raise SequoiaError(
                f"{where}: depth {depth + 1}, rank {rank + 1}: found {rate:g}, expected 0 to 1"
            )
    return found


def _in_order(found: FloatArray, where: str) -> FloatArray:
    """The second column of a table whose first one counts its rows from 1.

    Raises:
        SequoiaError: it does not.
    """
    if found[:, 0].tolist() != list(range(1, len(found) + 1)):
        raise SequoiaError(
            f"{where}: column 1: found {found[0, 0]:g} first, expected 1, 2, 3 … one row after "
            "the other"
        )
    return found[:, 1:]


def _kind(header: Sequence[str], where: str) -> str | None:
    """What a header's columns are: "rank" or "depth"; None for a single column of rates.

    Raises:
        SequoiaError: something else, or not 1, 2, 3 … in their order.
    """
    if len(header) == 1 and header[0] in RATES:
        return None
    kinds = set()
    for column, name in enumerate(header, start=1):
        named = _COLUMN.fullmatch(name)
        if named is None or int(named["number"]) != column:
            raise SequoiaError(
                f"{where}: header: found {name!r}, expected rank {column} or depth {column}, or "
                "rank,acceptance or depth,acceptance"
            )
        kinds.add(_LABELS.get(named["kind"], "rank"))
    if len(kinds) > 1:
        raise SequoiaError(f"{where}: header: found ranks and depths, expected one of them")
    return kinds.pop()


def other_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns of a table of latencies that `profile_of` leaves out."""
    return [name for name in rows[0] if name and name not in LATENCY_COLUMNS]


def acceptance_of(table: FloatArray, where: str, **facts: Any) -> Acceptance:
    """An acceptance measurement without traces, of p[d][k] as [depths, ranks].

    Raises:
        SequoiaError: rates of one node that sum to more than 1.
    """
    try:
        by_depth = table if len(table) > 1 else None
        return Acceptance(table[0], by_depth=by_depth, **facts)
    except SequoiaError as error:
        raise SequoiaError(f"{where}: {error}") from None


def profile_of(
    rows: Sequence[Sequence[str]], where: str, target: str, draft: str, hardware: str
) -> LatencyProfile:
    """A profile of latencies measured elsewhere; what is no forward is not known, and 0.

    Args:
        rows: a header with `LATENCY_COLUMNS`, then one row for each forward measured.

    Raises:
        SequoiaError: a column, a role or one token is missing, or a column is there twice; a
            time that cannot be; a point given twice.
    """
    if twice := [name for name in LATENCY_COLUMNS if rows[0].count(name) > 1]:
        raise SequoiaError(f"{where}: column {twice[0]!r} is there twice")
    missing = [name for name in LATENCY_COLUMNS if name not in rows[0]]
    if missing:
        raise SequoiaError(f"{where}: column {missing[0]!r} is missing")
    columns = [rows[0].index(name) for name in LATENCY_COLUMNS]
    points: dict[str, dict[tuple[int, int], dict[int, float]]] = {role: {} for role in ROLES}
    for line, row in enumerate(rows[1:], start=2):
        if len(row) < len(rows[0]):
            raise SequoiaError(f"{where}: line {line}: found {len(row)} cells")
        role, *cells = (row[column] for column in columns)
        if role not in points:
            raise SequoiaError(
                f"{where}: line {line}: role: found {role!r}, expected target, draft"
            )
        values = [
            _number(cell, f"{where}: line {line}: {name}")
            for name, cell in zip(LATENCY_COLUMNS[1:], cells, strict=True)
        ]
        for name, value, least in zip(LATENCY_COLUMNS[1:4], values, (1, 0, 1), strict=False):
            if value != int(value) or value < least:
                raise SequoiaError(
                    f"{where}: line {line}: {name}: found {value:g}, expected a whole number from "
                    f"{least}"
                )
        batch, context, tokens = map(int, values[:3])
        if values[3] <= 0:
            raise SequoiaError(
                f"{where}: line {line}: ms: found {values[3]:g}, expected a time above 0"
            )
        curve = points[role].setdefault((batch, context), {})
        if tokens in curve:
            raise SequoiaError(
                f"{where}: line {line}: tokens: {tokens} of batch {batch} and context {context} "
                "are there twice"
            )
        curve[tokens] = values[3]
    models = []
    for role, name in zip(ROLES, (target, draft), strict=True):
        if not any(batch == 1 for batch, _ in points[role]):
            raise SequoiaError(f"{where}: role: no row of {role} with batch 1")
        curves = []
        for (batch, context), found in sorted(points[role].items()):
            tokens_of = sorted(found)
            times = np.array([found[count] for count in tokens_of])
            curves.append(Curve(batch, context, tokens_of, times, times, times))
        models.append(ModelLatency(name, "", curves))
    names = [GREEDY, *(verifier + cut for verifier in VERIFIERS for cut in ("", TOP_P))]
    return LatencyProfile(
        hardware={"slug": hardware, "name": hardware},
        software={},
        engine={},
        target=models[0],
        draft=models[1],
        overhead=dict.fromkeys(names, Overhead(0.0, 0.0, 0.0)),
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, where: str) -> float:
    value = float(cell) if _is_number(cell) else math.nan
    if not math.isfinite(value):
        raise SequoiaError(f"{where}: found {cell!r}, expected a number")
    return value
