from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from recordings import make_recording
from test_latency import make_profile

from sequoia_opt.plan.adaptive import Limits, Multipliers, PolicySearch, dinkelbach
from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import PolicyReplay
from sequoia_opt.plan.policy_times import PolicyTimes

SIZES = (1, 2, 4, 8, 16)


def make_search(
    slope: float = 1.0, draft_ms: float = 1.0, seed: int = 0, sureness: float = 1.0
) -> PolicySearch:
    recording = make_recording([80] * 6, seed=seed, sureness=sureness)
    confidence = fit_confidence(recording).confidence
    times = PolicyTimes(make_profile(slope, draft_ms), "greedy", {300.0: 1.0})
    return PolicySearch(PolicyReplay(recording, confidence), times, fill=True)


@pytest.mark.parametrize("start", [0.0, 0.05, 1.0])
def test_dinkelbach_finds_the_best_ratio_of_a_grid_of_thresholds(start: float) -> None:
    search = make_search()
    policies = [
        Policy(search.replay.confidence, 4, 4, ((1, e), (2, e + w)), 0.5, offer, SIZES)
        for e, w, offer in product((0.05, 0.2, 0.5), (0.01, 0.1), (0.02, 0.1, 0.3))
    ]
    chosen, rate = dinkelbach(lambda _: policies, search.totals, start)
    ratios = {p: search.totals(p)[0] / search.totals(p)[1] for p in policies}
    assert rate == pytest.approx(max(ratios.values()))
    assert ratios[chosen] == pytest.approx(rate)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_as_fast_as_a_fine_grid_of_thresholds(seed: int) -> None:
    search = make_search(seed=seed)
    solution = search.best(Limits(4, 1, (1,), SIZES), 0.05)
    assert solution.rate == pytest.approx(search.times.rate(solution.counts))
    best = 0.0
    for expand, offer in product(np.geomspace(0.02, 1, 16), np.geomspace(0.01, 0.9, 16)):
        policy = Policy(search.replay.confidence, 4, 1, ((1, expand),), 0.5, offer, SIZES)
        tokens, milliseconds = search.totals(policy)
        best = max(best, tokens / milliseconds)
    assert solution.rate >= 0.995 * best


def test_thresholds_follow_from_the_times() -> None:
    cheap, dear = (make_search(draft_ms=ms) for ms in (0.2, 2.0))
    limits = Limits(4, 4, (1, 2), SIZES)
    first, second = (s.policy(limits, 0.1, Multipliers()) for s in (cheap, dear))
    assert first.expand[0][1] < second.expand[0][1]
    assert first.first < second.first
    flat, steep = (make_search(slope=slope) for slope in (0.1, 3.0))
    first, second = (s.policy(limits, 0.1, Multipliers()) for s in (flat, steep))
    assert first.offer < second.offer
    assert flat.policy(limits, 0.2, Multipliers()).offer == pytest.approx(2 * first.offer)


def test_a_wider_level_costs_what_more_nodes_take() -> None:
    search = make_search()
    search.times.draft_ms[0, 2] = search.times.draft_ms[0, 1] + 0.5
    limits = Limits(4, 4, (1, 2), SIZES)
    (_, one), (_, two) = search.policy(limits, 0.1, Multipliers()).expand
    (_, same), (_, more) = search.policy(limits, 0.1, Multipliers(wider=2.0)).expand
    assert same == one
    assert more - one == pytest.approx(2 * (two - one), rel=0.05)
