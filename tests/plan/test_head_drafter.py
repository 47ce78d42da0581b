"""Planning for a head on the target, whose first pass reads all that a step can commit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute_force import KINDS, all_trees, random_profile, random_rates, speed
from hypothesis import given
from recordings import make_recording, measured, of_head
from test_latency import make_profile, with_adaptive_overhead
from test_tree import trees

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.draft_passes import OF_HEAD, draft_passes
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import TokenTree

LARGEST = 7  # nodes of the trees that are tried one by one


def head_profile(profile: LatencyProfile) -> LatencyProfile:
    return replace(profile, draft=replace(profile.draft, passes=OF_HEAD))


@given(trees())
def test_the_first_pass_reads_all_that_a_step_can_commit(tree: TokenTree) -> None:
    passes, others = draft_passes(tree, passes=OF_HEAD), draft_passes(tree)
    assert passes[1:] == others[1:]
    assert passes[:1] == ((int(max(tree.depths)) + 1,) if tree.size > 1 else ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_sum_of_its_passes(kind: str) -> None:
    profile = head_profile(random_profile(np.random.default_rng(0), kind, 9))
    [curve], overhead = profile.draft.curves, profile.overhead["greedy"]
    times = StepTimes(profile, "greedy", {0: 1.0})
    for tree in (shapes.chain(1), shapes.chain(5), shapes.k_sequences(2, 3), shapes.k_ary(2, 2)):
        widths = [len(nodes) for nodes in tree.internal_levels]
        passes = [tree.depth + 1, *widths[1:]] if widths else []
        draft_ms = sum(curve.median_ms[tokens - 1] for tokens in passes)
        target_ms = float(profile.target.at([tree.size], 0)[0])
        expected = target_ms + draft_ms + overhead.at(tree.size, len(passes))
        assert profile.step_ms(tree, "greedy", 0) == pytest.approx(expected)
        assert times.step_ms(tree)[0] == pytest.approx(expected)
        padded = np.array([*widths, 0, 0])
        assert times.steps_ms(np.array(tree.size), padded) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_the_fastest_of_all_trees(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    profile = head_profile(random_profile(generator, kind, LARGEST))
    by_depth = np.array([random_rates(generator, 3, falling=True) for _ in range(3)])
    acceptance = Acceptance(by_depth[0], by_depth=by_depth)
    plan = solve(profile, acceptance, context=0, max_size=LARGEST, max_width=3)
    best = max(
        speed(tree, acceptance, profile)
        for size in range(1, LARGEST + 1)
        for tree in all_trees(size)
        if tree.child_counts.max() <= 3
    )
    assert speed(plan.tree, acceptance, profile) == pytest.approx(best, rel=1e-9)


def test_a_tree_deeper_than_was_measured_has_no_time() -> None:
    profile = head_profile(make_profile())
    for curve in profile.draft.curves:
        curve.tokens, curve.median_ms = curve.tokens[:3], curve.median_ms[:3]
        curve.low_ms, curve.high_ms = curve.low_ms[:3], curve.high_ms[:3]
    times = StepTimes(profile, "greedy", {128: 1.0})
    assert np.isfinite(times.levels_ms(np.array([1, 1, 1, 0]))).all()
    assert np.isinf(times.levels_ms(np.array([1, 1, 1, 1]))).tolist() == [False] * 3 + [True]
    with pytest.raises(SequoiaError, match="not for 5"):
        times.step_ms(shapes.chain(5))


def test_the_file_says_so(tmp_path: Path) -> None:
    profile = head_profile(make_profile())
    profile.save(tmp_path / "p.yaml")
    loaded = LatencyProfile.load(tmp_path / "p.yaml")
    assert loaded.document() == profile.document()
    assert loaded.document()["draft"]["passes"] == "head"
    recording = of_head(make_recording([20] * 4))
    recording.save(tmp_path / "r.npz")
    assert Recording.load(tmp_path / "r.npz").is_of_head
    assert not make_recording([20] * 4).is_of_head


def test_adaptive_plans_are_solved_from_a_heads_recording() -> None:
    """They are chosen where they pay, and what a first pass reads makes its steps longer."""
    recording = of_head(make_recording([80] * 12, sureness=2.0))
    profile = with_adaptive_overhead(make_profile(slope=0.6, draft_ms=2.5))
    plans = []
    for rise in (0.0, 0.3):  # of a draft pass, for each token
        for curve in profile.draft.curves:
            curve.median_ms = 2.5 + rise * (np.array(curve.tokens) - 1)
            curve.low_ms, curve.high_ms = 0.9 * curve.median_ms, 1.1 * curve.median_ms
        rates = measured(recording)
        plans.append(
            solve(head_profile(profile), rates, recording=recording, replicates=20, context=200)
        )
    assert plans[0].adaptive is not None
    assert plans[1].adaptive is not None
    fast, slow = (
        max(float(one.tokens_per_second[0]) for one in plan.adaptive.adaptive) for plan in plans
    )
    assert slow < fast
