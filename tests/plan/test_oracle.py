from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from recordings import make_recording
from test_latency import make_profile

from sequoia_opt.plan.oracle import oracle_counts
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.shapes import chain
from sequoia_opt.plan.step_times import StepTimes


def ways(accepted: list[bool]) -> Iterator[list[int]]:
    """All ways to go through a document in steps, by their guesses."""
    if not accepted:
        yield []
        return
    for guesses in range(len(accepted)):
        if not all(accepted[:guesses]):
            return
        for rest in ways(accepted[guesses + 1 :]):
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
        expected += min(sum(step_ms[n] for n in way) for way in ways((ranks > 0).tolist()))
    assert total == pytest.approx(expected)
    assert counts.tokens.tolist() == [11, 9]


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
