from __future__ import annotations

import pytest

from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.growth_counts import BINS, GrownStep, GuessCounts
from sequoia_opt.plan.policy import Policy

CONFIDENCE = Confidence((0.5,), (((0.2, 0.85), (0.1, 0.45)),))
"""The first guess is accepted in 85% if its probability is above a half, the second in 45%."""


def policy(**changes: object) -> Policy:
    fields = {"depth": 2, "ranks": 2, "expand": ((1, 0.3), (2, 0.4)), "first": 0.0, "offer": 0.1}
    return Policy(CONFIDENCE, sizes=(1, 2, 4, 8), **fields | changes)  # type: ignore[arg-type]


def grown(rule: Policy, *rows: list[float]) -> Growth:
    """A tree whose nodes have guesses of these probabilities, in the order of drafting."""
    growth, remaining = Growth(rule), list(rows)
    while nodes := growth.next_level():
        growth.add(nodes, [remaining.pop(0) for _ in nodes])
    assert not remaining
    return growth


def test_guesses_below_reached_nodes_are_counted_by_their_calibrated_acceptance() -> None:
    """The root has guesses 1 and 2, node 1 has 3 and 4, node 2 has 5 and 6."""
    growth = grown(policy(), [0.6, 0.5], [0.9, 0.1], [0.3, 0.2])
    assert growth.parents == [-1, 0, 0, 1, 1, 2, 2]
    counts = GuessCounts()
    for nodes, accepted in (([1, 2, 3, 4, 5], [1, 3]), ([1, 2, 3, 4, 5], [2]), ([1], [])):
        counts.add(GrownStep(growth, nodes, accepted, len(nodes) + 1, growth.stop))
    # Reached: 1, 2, 3, 4; then 1, 2, 5; then 1. Calibrated: .85, .45, .85, .1; .85, .45, .2; .85.
    expected = {1: (1, 0.1, 0), 2: (1, 0.2, 0), 4: (2, 0.9, 1), 8: (4, 3.4, 2)}
    for number in range(BINS):
        verified, predicted, happened = expected.get(number, (0, 0.0, 0))
        assert counts.verified[number] == verified
        assert counts.predicted[number] == pytest.approx(predicted)
        assert counts.accepted[number] == happened
    twice = GuessCounts.together([counts, counts])
    assert sum(twice.verified) == 2 * sum(counts.verified) == 16


def test_certain_and_impossible_guesses_are_in_the_last_and_the_first_bin() -> None:
    certain = Confidence((0.5,), (((0.0, 1.0),),))
    rule = Policy(certain, 2, 1, ((1, 0.0),), 0.0, 0.0, (1, 2, 3))
    growth = grown(rule, [0.9], [0.2])
    counts = GuessCounts()
    counts.add(GrownStep(growth, [1, 2], [1], 3, growth.stop))
    assert (counts.verified[0], counts.verified[-1], sum(counts.verified)) == (1, 1, 2)
    assert counts.accepted[-1] == 1


@pytest.mark.parametrize(
    ("rule", "rows", "stop"),
    [
        (policy(), [[0.6, 0.5], [0.9, 0.1], [0.3, 0.2]], "depth"),
        (policy(), [[0.2, 0.1]], "threshold"),  # 20% and 10%, below 30% and 40%
        (policy(first=1.0), [], "threshold"),
        (policy(), [[]], "no guess"),
    ],
)
def test_why_a_tree_does_not_grow_further(rule: Policy, rows: list[list[float]], stop: str) -> None:
    assert grown(rule, *rows).stop == stop
