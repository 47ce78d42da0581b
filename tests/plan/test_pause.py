from __future__ import annotations

import pytest

from sequoia_opt.plan.pause import Pause, PauseState


def history(accepted: list[int], pause: Pause | None) -> str:
    """What each step does: d drafts, p is plain. A plain step accepts nothing."""
    state, told = PauseState(), ""
    remaining = list(accepted)
    while remaining:
        plain = state.plain > 0
        told += "p" if plain else "d"
        state = state.after(0 if plain else remaining.pop(0), pause)
    return told


@pytest.mark.parametrize(
    ("accepted", "pause", "expected"),
    [
        ([0] * 5, None, "ddddd"),
        ([0] * 5, Pause(2, (1, 3)), "ddpdpppdpppd"),  # the last entry repeats
        ([0, 1, 0, 0, 1, 0, 0, 0], Pause(2, (2, 5)), "dddd" + "pp" + "ddd" + "pp" + "d"),
        ([0, 2, 0, 0], Pause(1, (1, 4)), "d" + "p" + "dd" + "p" + "d"),
    ],
)
def test_drafting_pauses_after_misses_in_a_row(
    accepted: list[int], pause: Pause | None, expected: str
) -> None:
    assert history(accepted, pause) == expected
