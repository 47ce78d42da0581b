"""The rules of other engines, replayed, against a step-by-step reading of each rule."""

from __future__ import annotations

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.plan.engine_rules import (
    BeamReplay,
    BeamTree,
    ChainReplay,
    ThresholdChain,
    solved_rules,
)
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from tests.plan.recordings import make_recording

RECORDING = make_recording([40, 25, 3], levels=5, seed=3)


def text_ahead(recording: Recording, position: int) -> list[int]:
    """The ranks of the text from a position to its document's end."""
    end = int(recording.starts[np.searchsorted(recording.starts, position, side="right")])
    return [int(rank) for rank in recording.ranks[position:end]]


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("guesses", [1, 3, 5])
def test_a_chain_ends_below_its_threshold(guesses: int, threshold: float, keeps: bool) -> None:
    chain = ThresholdChain(guesses, threshold, keeps)
    steps = ChainReplay(RECORDING).steps(chain)
    for position in range(len(RECORDING.ranks)):
        drafted, verified = 0, 0
        for level in range(guesses):
            drafted += 1
            sure = RECORDING.level(level)[position, 0, 0] >= threshold
            verified += sure or keeps
            if not sure:
                break
        text = text_ahead(RECORDING, position)
        accepted = 0
        while accepted < min(verified, len(text)) and text[accepted] == 1:
            accepted += 1
        assert steps.accepted[position] == accepted
        assert steps.sizes[position] == verified + 1
        assert steps.widths[position].sum() == drafted
        assert steps.leaves_behind[position] == (0 < accepted == drafted)


def grown_paths(recording: Recording, position: int, tree: BeamTree) -> set[tuple[int, ...]]:
    """The paths of ranks that a beam tree verifies at a position."""
    frontier: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    candidates: list[tuple[float, int, tuple[int, ...]]] = []
    for level in range(tree.levels):
        rows = recording.level(level)[position]
        children = [
            [((*path, rank + 1), value * rows[slot, rank]) for rank in range(tree.width)]
            for slot, (path, value) in enumerate(frontier)
        ]
        for child, value in (pair for row in children for pair in row):
            candidates.append((-value, len(candidates), child))
        slots: list[tuple[tuple[int, ...], float]] = []
        for slot in range(tree.width):
            below = [pair for row in children[: slot + 1] for pair in row if pair not in slots]
            slots.append(max(below, key=lambda pair: pair[1]))
        frontier = slots
    return {path for _, _, path in sorted(candidates)[: tree.nodes - 1]}


@pytest.mark.parametrize(
    "tree", [BeamTree(1, 2, 3), BeamTree(3, 2, 5), BeamTree(4, 3, 10), BeamTree(5, 4, 16)], ids=str
)
def test_a_beam_tree_verifies_the_likeliest(tree: BeamTree) -> None:
    recording = make_recording([30, 20], levels=5, seed=5)
    replay = BeamReplay(recording, tree.width)
    steps = replay.steps(tree)
    agreed = 0
    for position in range(len(recording.ranks)):
        paths = grown_paths(recording, position, tree)
        text = text_ahead(recording, position)[: tree.levels]
        accepted = max(
            count for count in range(len(text) + 1) if count == 0 or tuple(text[:count]) in paths
        )
        agreed += int(steps.accepted[position] == accepted)
    # Slots were recorded with four guesses a node: with fewer, a slot may hold one that the
    # narrower tree does not draft, and lacks the one that it would.
    least = 1.0 if tree.width == 4 else 0.95
    assert agreed >= least * len(recording.ranks)
    assert (steps.sizes == tree.nodes).all()
    assert steps.widths[:, 1:].max(initial=tree.width) == tree.width


@pytest.mark.parametrize(("truth", "draft_ms"), [(0.0, 0.01), (40.0, 5.0)])
def test_of_rules_the_fastest_numbers_are_chosen(truth: float, draft_ms: float) -> None:
    """With drafts that cost nothing and are always right the longest chain, with dear and useless
    ones the shortest."""
    recording = make_recording([60] * 6, levels=5, ranks=2, slots=2, truth=truth, seed=1)
    times = PolicyTimes(make_profile(draft_ms=draft_ms), "greedy", {300.0: 1.0})
    weights = np.ones((recording.documents, 1))
    rules = solved_rules(recording, recording, times, weights, times.target_ms[:1, 1])
    assert set(rules) == {"dropping_chain", "keeping_chain", "endless_chain", "beam_tree"}
    assert rules["keeping_chain"]["guesses"] == (5 if truth == 0 else 1)
    assert (rules["dropping_chain"]["speedup"] > 1) == (truth == 0)
