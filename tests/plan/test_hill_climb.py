from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from brute_force import KINDS, all_trees, random_profile, random_rates, speed
from hypothesis import given
from hypothesis import strategies as st
from test_acceptance import rate_tables
from test_tree import trees

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.hill_climb import arranged, climb, narrowed, pooled
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import TokenTree


@pytest.mark.parametrize("size", [16, 32])
def test_no_neighbour_is_faster(size: int) -> None:
    """Moving leaves about does not improve the solver's tree."""
    generator = np.random.default_rng(size)
    allowed = np.arange(size + 1) > 0
    for kind in KINDS:
        acceptance = Acceptance(random_rates(generator, 8, falling=True))
        profile = random_profile(generator, kind, size)
        tree = solve(profile, acceptance).fastest.tree
        times = StepTimes(profile, "greedy", {0.0: 1.0})
        climbed = climb(acceptance.table(size - 1), tree, times, allowed)
        assert speed(climbed, acceptance, profile) <= speed(tree, acceptance, profile) * 1.005


def child_counts(tree: TokenTree) -> tuple[tuple[int, ...], ...]:
    """The numbers of children on each level, sorted."""
    return tuple(tuple(sorted(tree.child_counts[level].tolist())) for level in tree.levels)


@given(table=rate_tables(depth=6, width=6))
def test_arranging_against_brute_force(table: np.ndarray) -> None:
    acceptance = Acceptance(table[0], by_depth=table)
    groups = defaultdict(list)
    for tree in all_trees(7):
        groups[child_counts(tree)].append(tree)
    for counts, group in groups.items():
        tree = arranged(table, group[-1])
        assert child_counts(tree) == counts
        best = max(acceptance.expected_tokens(other) for other in group)
        assert acceptance.expected_tokens(tree) == pytest.approx(best, abs=1e-12)


def test_pooled_rates() -> None:
    table = np.array([[0.1, 0.3, 0.2, 0.05, 0.15, 0.0], [0.5, 0.2, 0.1, 0.0, 0.0, 0.1]])
    expected = [[0.2, 0.2, 0.2, 0.1, 0.1, 0.0], [0.5, 0.2, 0.1, *[0.1 / 3] * 3]]
    assert pooled(table) == pytest.approx(np.array(expected))


@given(table=rate_tables(depth=3, width=9))
def test_pooled_rates_fall_and_sum_to_no_less(table: np.ndarray) -> None:
    rates = pooled(table)
    assert (np.diff(rates, axis=1) < 1e-12).all()
    excess = np.cumsum(rates - table, axis=1)
    assert excess.min() > -1e-12
    assert excess[:, -1] == pytest.approx(0, abs=1e-12)


def test_two_levels_narrow_at_once() -> None:
    """If only one level becomes narrower, its nodes make the next one wider."""
    profile = random_profile(np.random.default_rng(0), "stepped", 24)
    draft = profile.draft.curves[0]
    draft.median_ms[:] = 1.03 + 2.68 * (np.arange(1, 25) // 2)
    draft.low_ms = draft.high_ms = draft.median_ms
    profile.target.curves[0].median_ms[:] = 6.8
    acceptance = Acceptance(np.array([0.172, 0.049, 0.038, 0.083, 0.06, 0.071, 0.064, 0.076]))
    tree = solve(profile, acceptance, size=24, replicates=0).fastest.tree
    assert draft_passes(tree) == (2, 1, 1)


def test_a_tree_too_large_to_climb_from_is_narrowed_too() -> None:
    """Three draft tokens cost twenty times two: 160 nodes fit with two internal nodes a level."""
    profile = random_profile(np.random.default_rng(0), "monotone", 160)
    draft = profile.draft.curves[0]
    draft.median_ms[:] = [0.1, 0.1, *[2.0] * 158]
    draft.low_ms = draft.high_ms = draft.median_ms
    profile.target.curves[0].median_ms[:] = 5
    acceptance = Acceptance(np.array([0.36, 0.18, 0.225, *[0.003] * 45]))
    plan = solve(profile, acceptance, size=160, replicates=0)
    assert max(draft_passes(plan.fastest.tree)) == 2
    assert plan.fastest.tokens_per_second[0] > 1.3 * np.nanmax(plan.speed)


@given(tree=trees(max_size=14), table=rate_tables(depth=14, width=14), data=st.data())
def test_narrowing_a_level(tree: TokenTree, table: np.ndarray, data: st.DataObject) -> None:
    levels = len(tree.internal_levels)
    if levels < 2:
        return
    level = data.draw(st.integers(1, levels - 1))
    cap = data.draw(st.integers(0, len(tree.internal_levels[level]) - 1))
    narrow = narrowed(table, tree, level, cap)
    widths = [len(nodes) for nodes in narrow.internal_levels]
    assert narrow.size == tree.size  # other nodes have room for 14 children each
    assert (widths[level] if level < len(widths) else 0) <= cap


def test_a_level_narrows_by_several_nodes_at_once() -> None:
    """Two and three nodes wide cost the same, one a seventh: no single step leads there."""
    generator = np.random.default_rng(0)
    profile = random_profile(generator, "monotone", 16)
    draft = profile.draft.curves[0]
    draft.median_ms[:] = [0.72, 5.27, 5.27, *[10.98] * 13]
    draft.low_ms = draft.high_ms = draft.median_ms
    profile.target.curves[0].median_ms[:] = 22.6
    acceptance = Acceptance(np.array([0.057, 0.123, 0.125, 0.019, 0.03, 0.139, 0.063, 0.074]))
    tree = solve(profile, acceptance, size=16).fastest.tree
    assert draft_passes(tree) == (2, 1)
    assert sorted(tree.child_counts)[-2:] == [7, 8]


@pytest.mark.parametrize(("first", "last"), [(1, 3), (2, 3), (2, 5), (2, 16)])
def test_widths_that_were_not_measured_are_avoided(first: int, last: int) -> None:
    """Imported latencies may have gaps: no tree that needs a missing point is considered."""
    generator = np.random.default_rng(first + last)
    for case in range(12):
        acceptance = Acceptance(random_rates(generator, 6, falling=False))
        profile = random_profile(generator, KINDS[case % 3], 16)
        curve = profile.draft.curves[0]
        part = slice(first - 1, last)
        profile.draft.curves[0] = Curve(
            1, 0, curve.tokens[part], *(times[part] for times in (curve.median_ms,) * 3)
        )
        tree = solve(profile, acceptance, replicates=0).fastest.tree
        assert all(first <= width <= last for width in draft_passes(tree))


@pytest.mark.parametrize("seed", range(6))
def test_a_fixed_depth_allows_shallower_trees(seed: int) -> None:
    """Fixing the depth finds as fast a tree as limiting it, even if that tree is shallower."""
    generator = np.random.default_rng(170 + seed)
    acceptance = Acceptance(random_rates(generator, 6, falling=False))
    profile = random_profile(generator, KINDS[seed % 3], 16)
    fixed, allowed = (
        speed(solve(profile, acceptance, replicates=0, **limit).fastest.tree, acceptance, profile)
        for limit in ({"depth": 6}, {"max_depth": 6})
    )
    assert fixed == pytest.approx(allowed, rel=5e-3)
