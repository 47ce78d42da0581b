from __future__ import annotations

from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.csv_import import (
    acceptance_of,
    acceptance_rates,
    is_latency_table,
    other_columns,
    profile_of,
    read_csv,
)
from sequoia_opt.plan.solver import solve

LATENCIES = """role,batch,context,tokens,ms
target,1,512,1,10
target,1,512,16,12
draft,1,512,1,0.5
draft,1,512,16,0.6
target,4,512,1,14
draft,4,512,1,0.7
"""


def rows_of(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def test_a_tree_is_solved_from_tables() -> None:
    rows = rows_of(LATENCIES)
    assert is_latency_table(rows)
    profile = profile_of(rows, "f.csv", "big", "small", "machine")
    assert profile.target.at([1, 16], 512).tolist() == [10, 12]
    assert profile.target.at([1], 512, batch=4).tolist() == [14]
    acceptance = acceptance_of(acceptance_rates([["0.7", "0.1"]], "a.csv"), "a.csv")
    plan = solve(profile, acceptance)
    assert plan.tree.size > 1
    assert plan.tree.metadata["target"] == "big"


@pytest.mark.parametrize(
    ("text", "by", "expected"),
    [
        ("0.6,0.2,0.1", None, [[0.6, 0.2, 0.1]]),
        ("0.6,0.2,0.1", "depth", [[0.6], [0.2], [0.1]]),
        ("0.6\n0.2\n0.1", "rank", [[0.6, 0.2, 0.1]]),
        ("acceptance\n0.6\n0.2", "depth", [[0.6], [0.2]]),
        ("rank,acceptance\n1,0.6\n2,0.2", None, [[0.6, 0.2]]),
        ("depth,acceptance\n1,0.6\n2,0.2", None, [[0.6], [0.2]]),
        ("rank 1,rank 2\n0.6,0.2", None, [[0.6, 0.2]]),
        ("p[1],p[2]\n0.6,0.2\n0.5,0.1", None, [[0.6, 0.2], [0.5, 0.1]]),
        ("Depth 1,Depth 2\n0.6,0.5\n0.2,0.1", None, [[0.6, 0.2], [0.5, 0.1]]),
        ("depth1,depth2\n0.6,0.5", None, [[0.6], [0.5]]),
        ("depth,k1,k2\n1,0.6,0.2\n2,0.5,0.1", None, [[0.6, 0.2], [0.5, 0.1]]),
        ("rank,depth 1,depth 2\n1,0.6,0.5\n2,0.2,0.1", None, [[0.6, 0.2], [0.5, 0.1]]),
        ("acceptance\n0.6", None, [[0.6]]),
    ],
)
def test_rates_by_rank_and_by_depth(text: str, by: str | None, expected: list[list[float]]) -> None:
    assert acceptance_rates(rows_of(text), "f", by).tolist() == expected


def test_a_matrix_is_depth_by_rank() -> None:
    table = acceptance_rates(rows_of("0.6,0.2\n0.4,0.3"), "f")
    acceptance = acceptance_of(table, "f", dataset="x")
    assert acceptance.by_depth is not None
    assert acceptance.by_depth.tolist() == [[0.6, 0.2], [0.4, 0.3]]
    assert acceptance.table(3).tolist() == [[0.6, 0.2], [0.4, 0.3], [0.4, 0.3]]
    assert acceptance.dataset == "x"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.6,x", "row 1, rank 2: found 'x'"),
        ("0.6,nan", "row 1, rank 2: found 'nan'"),
        ("0.6,-0.1", "depth 1, rank 2: found -0.1"),
        ("0.6,0.2\n0.5", "its rows differ in length"),
        ("words", "no rows of rates"),
        ("0.6\n0.2\n0.1", "found a column of rates, .*say --rates-by rank or --rates-by depth"),
        ("acceptance\n0.6\n0.2", "found a column of rates"),
        ("first,second\n0.6,0.2", "header: found 'first', expected rank 1 or depth 1"),
        ("rank 2,rank 1\n0.6,0.2", "header: found 'rank 2', expected rank 1"),
        ("rank 1,depth 2\n0.6,0.2", "header: found ranks and depths"),
        ("rank,rank 1\n1,0.2", "header: found ranks in rows and in columns"),
        ("rank,acceptance\n0,0.6\n1,0.2", "column 1: found 0 first, expected 1, 2, 3"),
    ],
)
def test_refuses_malformed_rates(text: str, complaint: str) -> None:
    with pytest.raises(SequoiaError, match="f.csv: " + complaint):
        acceptance_rates(rows_of(text), "f.csv")


def test_refuses_rates_that_sum_to_more_than_one() -> None:
    with pytest.raises(SequoiaError, match=r"f.csv: acceptance: found rates that sum to 1.2"):
        acceptance_of(acceptance_rates([["0.7", "0.5"]], "f.csv"), "f.csv")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ((",ms", ",time"), "column 'ms' is missing"),
        (("batch,context", "batch,tokens"), "column 'tokens' is there twice"),
        ((",16,12", ",16,0"), "line 3: ms: found 0"),
        ((",16,12", ",16,-3"), "line 3: ms: found -3"),
        ((",16,12", ",16,nan"), "line 3: ms: found 'nan'"),
        ((",16,12", ",1,12"), "line 3: tokens: 1 of batch 1 and context 512 are there twice"),
        ((",16,12", ",1.5,12"), "line 3: tokens: found 1.5"),
        ((",16,12", ",0,12"), "line 3: tokens: found 0"),
        (("draft,1", "drift,1"), "line 4: role: found 'drift'"),
        (("draft,1", "draft,2"), "role: no row of draft with batch 1"),
        ((",16,12", ""), "line 3: found 3 cells"),
    ],
)
def test_refuses_malformed_latencies(change: tuple[str, str], complaint: str) -> None:
    with pytest.raises(SequoiaError, match="f.csv: " + complaint):
        profile_of(rows_of(LATENCIES.replace(*change)), "f.csv", "big", "small", "machine")


def test_other_columns_are_listed() -> None:
    assert other_columns(rows_of(LATENCIES)) == []
    assert other_columns([["role", "batch", "context", "tokens", "ms", "unit"]]) == ["unit"]


def test_refuses_files_that_are_not_tables(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("\n,\n")
    with pytest.raises(SequoiaError, match="no rows"):
        read_csv(tmp_path / "empty.csv")
    (tmp_path / "excel.csv").write_bytes(b"\xef\xbb\xbf0.5, 0.1\r\n")
    assert read_csv(tmp_path / "excel.csv") == [["0.5", "0.1"]]


@pytest.mark.parametrize("first", ["O.63,0.11", ",0.11"])
def test_a_row_with_a_typing_error_is_not_a_header(first: str) -> None:
    with pytest.raises(SequoiaError, match="row 1, rank 1: found"):
        acceptance_rates(rows_of(first + "\n0.5,0.2"), "f")
