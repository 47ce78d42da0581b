"""Costs of rounds fitted to whole texts, against costs that are known."""

from __future__ import annotations

import numpy as np
import pytest
from chain_model import ChainModel

from sequoia_opt.plan.chain_replay import ChainRecord
from sequoia_opt.plan.round_costs import RoundCosts, TimedWalk, fit

TEXTS = [ChainModel.drawn(seed, 120) for seed in range(3)]
KNOWN = RoundCosts(10.0, (1, 2, 4, 8), np.array([14.0, 17.0, 22.0, 40.0]), 2.5)


def timed(guesses: int, threshold: float, costs: RoundCosts = KNOWN) -> TimedWalk:
    record = ChainRecord(16, threshold, [text.counted(16, threshold) for text in TEXTS])
    walk = record.walk(guesses)
    return TimedWalk(guesses, threshold, walk, float(costs.total_ms(walk).sum()))


def test_a_text_takes_its_rounds_and_the_passes_that_were_dropped() -> None:
    record = ChainRecord(8, 0.5, [TEXTS[0].counted(8, 0.5)])
    expected = 0.0
    for drafted, _, passes in TEXTS[0].steps(8, 0.5):
        round_ms = {0: 12.5, 1: 14.0, 2: 17.0, 3: 19.5, 4: 22.0, 5: 26.5, 6: 31.0, 7: 35.5, 8: 40.0}
        expected += round_ms[drafted] + 2.5 * (passes - drafted)
    assert KNOWN.total_ms(record.walk(8))[0] == pytest.approx(expected)


def test_known_costs_are_found_again() -> None:
    runs = [timed(guesses, 0.0) for guesses in KNOWN.lengths]
    found = fit(10.0, [*runs, timed(8, 0.3), timed(8, 0.6)])
    assert found.lengths == KNOWN.lengths
    assert found.round_ms == pytest.approx(KNOWN.round_ms)
    assert found.pass_ms == pytest.approx(KNOWN.pass_ms)


def test_without_a_threshold_a_pass_is_not_told_but_rounds_are() -> None:
    found = fit(10.0, [timed(guesses, 0.0) for guesses in KNOWN.lengths])
    assert found.round_ms == pytest.approx(KNOWN.round_ms, rel=0.02)
    assert 0 <= found.pass_ms <= 4


def test_a_pass_takes_no_time_that_a_round_does_not() -> None:
    noisy = [timed(guesses, 0.0) for guesses in KNOWN.lengths]
    slow = timed(8, 0.6)
    found = fit(10.0, [*noisy, TimedWalk(8, 0.6, slow.walk, 3 * slow.ms)])
    assert 0 <= found.pass_ms <= found.round_ms[0]


def test_past_the_last_length_rounds_go_on_in_a_line() -> None:
    assert KNOWN.at(10)[8:] == pytest.approx([40.0, 44.5, 49.0])
