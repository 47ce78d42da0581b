"""Planning for a drafter that guesses all positions of a step in one forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute_force import KINDS, all_trees, random_profile, random_rates, speed

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import write_document
from sequoia_opt.plan import csv_import, shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve
from sequoia_opt.plan.draft_passes import PER_BLOCK
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.step_times import StepTimes

LARGEST = 7  # nodes of the trees that are tried one by one


def block_profile(generator: np.random.Generator, kind: str, fewest: int = 1) -> LatencyProfile:
    """A random machine whose draft's passes are measured from `fewest` positions on."""
    profile = random_profile(generator, kind, LARGEST)
    [curve] = profile.draft.curves
    times = curve.median_ms[fewest - 1 :]
    measured = Curve(1, 0, curve.tokens[fewest - 1 :], times, times, times)
    draft = replace(profile.draft, curves=[measured], passes=PER_BLOCK)
    return replace(profile, draft=draft)


def test_a_step_has_one_pass_over_as_many_positions_as_the_tree_has_levels() -> None:
    profile = block_profile(np.random.default_rng(0), "convex")
    [curve], overhead = profile.draft.curves, profile.overhead["greedy"]
    for tree in (shapes.chain(1), shapes.chain(4), shapes.k_sequences(2, 3), shapes.k_ary(2, 2)):
        draft_ms = curve.median_ms[tree.depth - 1] + overhead.drafting_ms if tree.depth else 0.0
        target_ms = float(profile.target.at([tree.size], 0)[0]) + overhead.constant_ms
        expected = pytest.approx(target_ms + draft_ms)
        assert profile.step_ms(tree, "greedy", 0) == expected
        times = StepTimes(profile, "greedy", {0: 1.0})
        assert times.step_ms(tree)[0] == expected
        widths = [len(nodes) for nodes in tree.internal_levels] + [0]
        assert times.steps_ms(np.array(tree.size), np.array(widths)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fewest", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_the_fastest_of_all_trees(kind: str, fewest: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    profile = block_profile(generator, kind, fewest)
    by_depth = np.array([random_rates(generator, 3, falling=True) for _ in range(3)])
    acceptance = Acceptance(by_depth[0], by_depth=by_depth)
    plan = solve(profile, acceptance, context=0, max_size=LARGEST, max_width=3)
    trees = [
        tree
        for size in range(1, LARGEST + 1)
        for tree in all_trees(size)
        if tree.child_counts.max() <= 3
    ]
    best = max(speed(tree, acceptance, profile) for tree in trees)
    assert speed(plan.tree, acceptance, profile) == pytest.approx(best, rel=1e-9)


def test_a_block_longer_than_a_tree_takes_as_long_as_a_whole_one() -> None:
    """A checkpoint guesses a fixed number of positions: fewer cost the same."""
    profile = block_profile(np.random.default_rng(1), "monotone", fewest=4)
    [first, *_] = profile.draft.curves[0].median_ms
    for size in (2, 3, 4, 5):
        target_ms = float(profile.target.at([size], 0)[0])
        assert profile.forwards_ms(shapes.chain(size), 0) == pytest.approx(target_ms + first)
    times = StepTimes(profile, "greedy", {0: 1.0}, replicates=3)
    assert (times.draft_ms[:, 1:4] == times.draft_ms[:, [4]]).all()


def test_the_file_says_so(tmp_path: Path) -> None:
    profile = block_profile(np.random.default_rng(2), "stepped")
    profile.save(tmp_path / "p.yaml")
    assert LatencyProfile.load(tmp_path / "p.yaml").document() == profile.document()
    document = profile.document()
    assert document["draft"]["passes"] == "block"
    document["draft"]["passes"] = "two"
    write_document(tmp_path / "q.yaml", document)
    with pytest.raises(SequoiaError, match=r"q\.yaml: draft: passes: .*level, head, block or none"):
        LatencyProfile.load(tmp_path / "q.yaml")


TABLE = [
    ["role", "batch", "context", "tokens", "ms"],
    *[["target", "1", "100", str(tokens), "20"] for tokens in (1, 17)],
    ["block", "1", "100", "16", "2"],
]


def test_a_table_of_latencies_may_have_a_block_drafter() -> None:
    profile = csv_import.profile_of(TABLE, "t.csv", "big", "block", "here")
    assert profile.draft.passes == PER_BLOCK
    for depth in (1, 8, 16):
        assert profile.step_ms(shapes.chain(depth + 1), "greedy", 100) == pytest.approx(22)
    with pytest.raises(SequoiaError, match="17"):
        profile.step_ms(shapes.chain(18), "greedy", 100)


def test_rounds_with_a_block_drafter() -> None:
    rows = [[*TABLE[0], "round_ms"], *([*row, "25"] for row in TABLE[1:])]
    profile = csv_import.profile_of(rows, "t.csv", "big", "block", "here")
    assert profile.step_ms(shapes.chain(17), "greedy", 100) == pytest.approx(25)
    assert profile.step_ms(shapes.chain(1), "greedy", 100) == pytest.approx(25)


def test_a_table_has_one_kind_of_draft() -> None:
    rows = [*TABLE, ["draft", "1", "100", "1", "2"]]
    with pytest.raises(SequoiaError, match=r"t\.csv: role: found rows of draft and of block"):
        csv_import.profile_of(rows, "t.csv", "big", "block", "here")
