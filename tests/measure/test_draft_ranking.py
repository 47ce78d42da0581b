from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force import random_profile

from sequoia_opt.measure.compare_drafts import DraftResult, probability_faster, ranked
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve


class Choice:
    """A tree with these speedups: predicted, then resampled."""

    def __init__(self, *speedups: float) -> None:
        self.speedup = np.array(speedups)


class FakePlan:
    def __init__(self, *speedups: float) -> None:
        self.choice = Choice(*speedups)


def result(name: str, *speedups: float) -> DraftResult:
    nothing: Any = None
    plan: Any = FakePlan(*speedups)
    return DraftResult(name, 10, nothing, nothing, plan)


def test_the_fastest_draft_is_first() -> None:
    results = [result("a", 1.2), result("b", 2.0), result("c", 1.5)]
    assert [each.draft for each in ranked(results)] == ["b", "c", "a"]


def test_a_draft_is_faster_in_a_share_of_pairs_of_resamplings() -> None:
    """The prediction itself is no resampling, and a tie is not faster."""
    first, second = result("a", 9.0, 1.0, 3.0), result("b", 0.0, 1.0, 2.0)
    assert probability_faster(first, second) == pytest.approx(2 / 4)
    assert probability_faster(second, first) == pytest.approx(1 / 4)


def test_the_cost_of_a_draft_is_a_ratio_of_forward_passes() -> None:
    profile = random_profile(np.random.default_rng(0), "monotone", 16)
    rates = Acceptance(np.array([0.6, 0.2]))
    plan = solve(profile, rates)
    found = DraftResult("a", 10, profile, rates, plan)
    one = np.array([1])
    draft_ms = profile.draft.at(one, plan.context)[0]
    target_ms = profile.target.at(one, plan.context)[0]
    assert found.relative_cost == pytest.approx(draft_ms / target_ms)
    document = found.document()
    assert [document["speedup_low"], document["speedup_high"]] == list(found.speedup_interval)
    assert document["acceptance"] == [0.6, 0.2]
