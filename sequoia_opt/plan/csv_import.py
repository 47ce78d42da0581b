"""Measurements made elsewhere, from CSV: acceptance rates and latencies.

Knows the two tables and names the cell that is wrong. `Acceptance` and `LatencyProfile` check
what they become.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.files.reading import read_text
from sequoia_opt.plan import round_times
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.draft_passes import PER_BLOCK, PER_LEVEL
from sequoia_opt.plan.latency import TOP_P, LatencyProfile, Overhead
from sequoia_opt.plan.verifiers import GREEDY, VERIFIERS
from sequoia_opt.types import FloatArray

LATENCY_COLUMNS = ("role", "batch", "context", "tokens", "ms")
MINIMA = {"batch": 1, "context": 0, "tokens": 1}  # of the whole numbers in a table of latencies
TARGET, DRAFT, BLOCK = "target", "draft", "block"
ROLES = (TARGET, DRAFT)
BY = ("rank", "depth")  # what a single row or column of rates may be counted by
_KINDS = {"rank": "rank", "k": "rank", "depth": "depth", "d": "depth", "level": "depth"}
RATES = ("acceptance", "accepted", "rate", "rates", "p", "probability")
_COLUMN = re.compile(r"(?P<kind>rank|k|p|depth|d)[ _]?[(\[]?(?P<number>\d{1,4})[)\]]?")


def read_csv(path: str | Path) -> list[list[str]]:
    """The rows of a CSV file that are not empty.

    Raises:
        SequoiaError: the file cannot be read, or has no rows.
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
    """Whether a table has the header of a latency table, perhaps with a mistake in it."""
    return len(set(rows[0]) & set(LATENCY_COLUMNS)) >= 2


def acceptance_rates(
    rows: Sequence[Sequence[str]], where: str, by: str | None = None
) -> FloatArray:
    """p[d][k] as [depths, ranks], from a row of ranks, or a row for each depth.

    A first row of words is a header. It names ranks or depths (`rank 1`, `k2`, `p[3]`,
    `depth 1`, …), perhaps after a first column that counts the rows: `rank,acceptance`,
    `depth,acceptance` or `depth,rank 1,rank 2`. Without such a header a single column could hold
    the rates of ranks or of depths.

    Args:
        by: "rank" or "depth": what a single row or column is counted by, whatever the file says.

    Raises:
        SequoiaError: cells that are not numbers, rows of different lengths, rates outside 0 to 1,
            a header of something else, or a column that could be counted by either.
    """
    header: list[str] = []
    if not any(_is_number(cell) for cell in rows[0]):
        header, rows = [cell.lower() for cell in rows[0]], rows[1:]
    if not rows:
        raise SequoiaError(f"{where}: no rows of rates")
    cells = [
        [_number(cell, f"{where}: row {i}, rank {k}") for k, cell in enumerate(row, start=1)]
        for i, row in enumerate(rows, start=1)
    ]
    if len({len(row) for row in cells}) != 1:
        raise SequoiaError(f"{where}: its rows differ in length")
    table = np.array(cells)
    rows_are = None
    if len(header) > 1 and header[0] in _KINDS:
        rows_are, header, table = _KINDS[header[0]], header[1:], _without_counts(table, where)
    columns_are = _kind_of_columns(header, where) if header else None
    if rows_are is not None and rows_are == columns_are:
        raise SequoiaError(f"{where}: header: found {rows_are}s in rows and in columns")
    if 1 not in table.shape:
        is_transposed = rows_are == "rank" or columns_are == "depth"
        table = table.T if is_transposed else table
    elif kind := by or rows_are or columns_are:
        table = table.reshape((1, -1) if kind == "rank" else (-1, 1))
    elif len(table) > 1:
        raise SequoiaError(
            f"{where}: found a column of rates, which could be those of ranks 1, 2, 3 … or those "
            "of depths 1, 2, 3 …; say --rates-by rank or --rates-by depth"
        )
    for (depth, rank), rate in np.ndenumerate(table):
        if not 0 <= rate <= 1:
            raise SequoiaError(
                f"{where}: depth {depth + 1}, rank {rank + 1}: found {rate:g}, expected 0 to 1"
            )
    return table


def _without_counts(table: FloatArray, where: str) -> FloatArray:
    """The columns after the first one, which counts the rows from 1.

    Raises:
        SequoiaError: it does not.
    """
    if table[:, 0].tolist() != list(range(1, len(table) + 1)):
        raise SequoiaError(
            f"{where}: column 1: found {table[0, 0]:g} first, expected 1, 2, 3 … in consecutive "
            "rows"
        )
    return table[:, 1:]


def _kind_of_columns(header: Sequence[str], where: str) -> str | None:
    """What a header's columns are: "rank" or "depth"; None for a single column of rates.

    Raises:
        SequoiaError: something else, or not 1, 2, 3 … in this order.
    """
    if len(header) == 1 and header[0] in RATES:
        return None
    kinds = set()
    for column, name in enumerate(header, start=1):
        match = _COLUMN.fullmatch(name)
        if match is None or int(match["number"]) != column:
            raise SequoiaError(
                f"{where}: header: found {name!r}, expected rank {column} or depth {column}, or "
                "rank,acceptance or depth,acceptance"
            )
        kinds.add(_KINDS.get(match["kind"], "rank"))
    if len(kinds) > 1:
        raise SequoiaError(f"{where}: header: found ranks and depths, expected one of them")
    return kinds.pop()


def other_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns of a table of latencies that `profile_of` ignores."""
    known = (*LATENCY_COLUMNS, round_times.COLUMN)
    return [name for name in rows[0] if name and name not in known]


def acceptance_of(table: FloatArray, where: str, **facts: Any) -> Acceptance:
    """An acceptance measurement without traces.

    Args:
        table: p[d][k] as [depths, ranks].
        facts: other attributes of `Acceptance`.

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
    """A profile of latencies measured elsewhere; the unknown overhead counts as 0.

    Args:
        rows: a header with `LATENCY_COLUMNS`, then one row for each measured forward pass. With
            a column `round_ms`, the target's rows are of rounds, see `round_times`. Rows of the
            role `block` take the place of the draft's: `tokens` are the positions that one pass
            of a block drafter guesses.

    Raises:
        SequoiaError: a missing or repeated column, a missing role, a draft that is both, a time
            that is not above 0, or two rows for one point.
    """
    points = _latency_points(rows, where)
    block = points.pop(BLOCK)
    if block and points[DRAFT]:
        raise SequoiaError(f"{where}: role: found rows of draft and of block, expected one of them")
    points[DRAFT] = points[DRAFT] or block
    rounds = points.pop(round_times.COLUMN)
    if rounds and not points[DRAFT]:
        points[DRAFT] = round_times.no_draft_passes(rounds)
    for role in ROLES:
        measured = rounds if rounds and role == TARGET else points[role]
        if not any(batch == 1 for batch, _ in measured):
            raise SequoiaError(f"{where}: role: no row of {role} with batch 1")
    passes = PER_BLOCK if block else PER_LEVEL
    draft_model = ModelLatency(draft, "", curves_of(points[DRAFT]), passes=passes)
    if rounds:
        points[TARGET] = round_times.target_ms(rounds, draft_model, where)
    overheads = [GREEDY, *(verifier + cut for verifier in VERIFIERS for cut in ("", TOP_P))]
    return LatencyProfile(
        hardware={"slug": hardware, "name": hardware},
        software={},
        engine={},
        target=ModelLatency(target, "", curves_of(points[TARGET])),
        draft=draft_model,
        overhead=dict.fromkeys(overheads, Overhead(0.0, 0.0, 0.0)),
        extra={"rounds": "served"} if rounds else {},
    )


def curves_of(points: round_times.Points) -> list[Curve]:
    """One curve for each batch and context, whose intervals are points."""
    curves = []
    for (batch, context), ms_by_tokens in sorted(points.items()):
        tokens = sorted(ms_by_tokens)
        times = np.array([ms_by_tokens[count] for count in tokens])
        curves.append(Curve(batch, context, tokens, times, times, times))
    return curves


def _latency_points(rows: Sequence[Sequence[str]], where: str) -> dict[str, round_times.Points]:
    """The rows of a table of latencies by role.

    The target's rows of a table with rounds are under that column's name instead.

    Raises:
        SequoiaError: see `profile_of`.
    """
    has_rounds = round_times.COLUMN in rows[0]
    names = (*LATENCY_COLUMNS, *([round_times.COLUMN] if has_rounds else []))
    if repeated := [name for name in names if rows[0].count(name) > 1]:
        raise SequoiaError(f"{where}: column {repeated[0]!r} is there twice")
    if missing := [name for name in LATENCY_COLUMNS if name not in rows[0]]:
        raise SequoiaError(f"{where}: column {missing[0]!r} is missing")
    points: dict[str, round_times.Points] = {
        role: {} for role in (*ROLES, BLOCK, round_times.COLUMN)
    }
    for line, row in enumerate(rows[1:], start=2):
        if len(row) < len(rows[0]):
            raise SequoiaError(f"{where}: line {line}: found {len(row)} cells")
        cells = dict(zip(rows[0], row, strict=False))
        if cells["role"] not in (*ROLES, BLOCK):
            raise SequoiaError(
                f"{where}: line {line}: role: found {cells['role']!r}, expected target, draft or "
                "block"
            )
        is_round = has_rounds and cells["role"] == TARGET
        time = round_times.COLUMN if is_round else "ms"
        (batch, context, tokens), ms = _point(cells, time, f"{where}: line {line}")
        role = round_times.COLUMN if is_round else cells["role"]
        ms_by_tokens = points[role].setdefault((batch, context), {})
        if tokens in ms_by_tokens:
            raise SequoiaError(
                f"{where}: line {line}: tokens: {tokens} of batch {batch} and context {context} "
                "are there twice"
            )
        ms_by_tokens[tokens] = ms
    return points


def _point(cells: Mapping[str, str], time: str, where: str) -> tuple[tuple[int, int, int], float]:
    """Batch, context and tokens of a row, and the time in a column, in milliseconds.

    Raises:
        SequoiaError: a cell is not a number of its kind.
    """
    values = {name: _number(cells[name], f"{where}: {name}") for name in (*MINIMA, time)}
    for name, minimum in MINIMA.items():
        if values[name] != int(values[name]) or values[name] < minimum:
            raise SequoiaError(
                f"{where}: {name}: found {values[name]:g}, expected a whole number from {minimum}"
            )
    if values[time] <= 0:
        raise SequoiaError(f"{where}: {time}: found {values[time]:g}, expected a time above 0")
    batch, context, tokens = (int(values[name]) for name in MINIMA)
    return (batch, context, tokens), values[time]


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
