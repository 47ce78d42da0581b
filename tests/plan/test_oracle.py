from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import numpy as np
import pytest
from recordings import make_recording, of_head
from test_latency import make_profile

from sequoia_opt.plan.oracle import oracle_counts
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.shapes import chain
from sequoia_opt.plan.step_times import StepTimes


def runs(ranks: list[int]) -> list[int]:
    """Accepted guesses in a row from each position on."""
    return [len(list(takewhile(bool, ranks[start:]))) for start in range(len(ranks))]


def ways(runs: list[int]) -> Iterator[list[int]]:
    """All ways to go through a document in steps, by their guesses."""
    if not runs:
        yield []
        return
    for guesses in range(min(runs[0], len(runs) - 1) + 1):
        for rest in ways(runs[guesses + 1 :]):
            yield [guesses, *rest]


@pytest.mark.parametrize("seed", range(5))
def test_the_oracle_is_the_fastest_way_through_each_document(seed: int) -> None:
    recording = make_recording([11, 9], levels=1, slots=1, seed=seed)
    profile = make_profile(slope=1.5, draft_ms=2.0)
    times = PolicyTimes(profile, "greedy", {300.0: 1.0})
    static = StepTimes(profile, "greedy", {300.0: 1.0})
    step_ms = [float(static.step_ms(chain(size))[0]) for size in range(1, 12)]
    counts = oracle_counts(recording, times)
    total = float(times.total_ms(counts, np.ones((2, 1)))[0])
    expected = 0.0
    for document in range(2):
        ranks = recording.ranks[recording.starts[document] : recording.starts[document + 1]]
        expected += min(sum(step_ms[n] for n in way) for way in ways(runs(ranks.tolist())))
    assert total == pytest.approx(expected)
    assert counts.tokens.tolist() == [11, 9]


def test_a_head_accepts_as_much_as_behind_any_root() -> None:
    """Behind its own root, or behind those before, whichever is more."""
    recording = of_head(make_recording([9], levels=4, slots=1, seed=3))
    assert recording.path_ranks is not None
    times = PolicyTimes(make_profile(slope=1.5, draft_ms=2.0), "greedy", {300.0: 1.0})
    counts = oracle_counts(recording, times)
    static = StepTimes(make_profile(slope=1.5, draft_ms=2.0), "greedy", {300.0: 1.0})
    step_ms = [float(static.step_ms(chain(size))[0]) for size in range(1, 12)]
    own = [runs(ranks)[0] for ranks in recording.path_ranks.tolist()]
    most = [max(pair) for pair in zip(own, runs(recording.ranks.tolist()), strict=True)]
    assert most != runs(recording.ranks.tolist())
    expected = min(sum(step_ms[n] for n in way) for way in ways(most))
    assert times.total_ms(counts, np.ones((1, 1)))[0] == pytest.approx(expected)


def test_it_decodes_plainly_where_nothing_is_accepted() -> None:
    recording = make_recording([20], levels=1, slots=1)
    never = Recording(
        recording.probabilities,
        recording.origins,
        np.zeros_like(recording.ranks),
        recording.starts,
    )
    counts = oracle_counts(never, PolicyTimes(make_profile(), "greedy", {300.0: 1.0}))
    assert (counts.sizes[0, 1], counts.steps[0]) == (20, 20)
    assert counts.first.sum() == counts.widths.sum() == 0
