from __future__ import annotations

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import csv_import, shapes
from sequoia_opt.plan.latency import LatencyProfile

HEADER = ["role", "batch", "context", "tokens", "ms", "round_ms"]
ROUNDS = {(1, 1): 10.0, (1, 2): 12.0, (1, 4): 15.0, (8, 1): 30.0, (8, 2): 60.0, (8, 4): 110.0}


def table(with_draft: bool = True, ms: str = "4") -> list[list[str]]:
    rows = [HEADER]
    for (batch, tokens), round_ms in ROUNDS.items():
        rows.append(["target", str(batch), "100", str(tokens), ms, str(round_ms)])
        if with_draft:
            rows.append(["draft", str(batch), "100", str(tokens), "1.5", ""])
    return rows


def profile(rows: list[list[str]]) -> LatencyProfile:
    return csv_import.profile_of(rows, "t.csv", "big", "small", "here")


@pytest.mark.parametrize("with_draft", [True, False])
@pytest.mark.parametrize("ms", ["4", ""])
def test_a_step_takes_as_long_as_its_round(with_draft: bool, ms: str) -> None:
    """Whatever the isolated forward passes take."""
    made = profile(table(with_draft, ms))
    for (batch, tokens), round_ms in ROUNDS.items():
        step = made.step_ms(shapes.chain(tokens), "greedy", 100, batch)
        assert step == pytest.approx(round_ms, rel=1e-9)
    assert made.extra == {"rounds": "served"}


def test_without_rounds_the_forward_passes_are_summed() -> None:
    rows = [row[:5] for row in table()]
    made = profile(rows)
    assert made.step_ms(shapes.chain(2), "greedy", 100, 8) == pytest.approx(4 + 1.5)
    assert made.extra == {}


def test_rounds_are_known_columns() -> None:
    assert csv_import.other_columns([[*HEADER, "note"]]) == ["note"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"round_ms": ""}, "line 2: round_ms: found '', expected a number"),
        ({"round_ms": "0"}, "line 2: round_ms: found 0, expected a time above 0"),
        ({"tokens": "8"}, "context 100, 8 tokens: found 10 ms, expected more than the draft's"),
        ({"batch": "3", "tokens": "2"}, "batch 3, context 100, 2 tokens: found no times of the"),
    ],
)
def test_refuses_rounds_that_cannot_be(change: dict[str, str], complaint: str) -> None:
    rows = table()
    for name, value in change.items():
        rows[1][HEADER.index(name)] = value
    rows.append(["draft", "1", "100", "8", "1.5", ""])
    with pytest.raises(SequoiaError, match=complaint):
        profile(rows)
