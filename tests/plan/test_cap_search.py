from __future__ import annotations

import numpy as np
import pytest
from brute_force import KINDS, all_trees, fastest, random_profile, random_rates, speed
from hypothesis import given
from hypothesis import strategies as st
from test_acceptance import rate_tables

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.cap_search import grow, grow_many, may_be_faster, without_ties
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.step_times import StepTimes


def test_brute_force_is_the_best_of_all_trees() -> None:
    generator = np.random.default_rng(0)
    acceptance = Acceptance(random_rates(generator, 4, falling=False), temperature=0)
    profile = random_profile(generator, "monotone", 6)
    trees = [t for size in range(1, 7) for t in all_trees(size) if t.child_counts.max() <= 4]
    tree, best = fastest(acceptance, profile, 6)
    assert best == pytest.approx(max(speed(tree, acceptance, profile) for tree in trees))
    assert best == pytest.approx(speed(tree, acceptance, profile))


@given(
    table=rate_tables(depth=4, width=3), caps=st.lists(st.integers(1, 3), min_size=4, max_size=4)
)
def test_growing_with_caps_against_brute_force(table: np.ndarray, caps: list[int]) -> None:
    table = -np.sort(-table, axis=1)
    capped = grow(table, caps, 7)
    acceptance = Acceptance(table[0], by_depth=table)
    for size in range(1, len(capped.expected) + 1):
        best = max(
            acceptance.expected_tokens(tree)
            for tree in all_trees(size)
            if tree.depth <= 4
            and tree.child_counts.max() <= 3
            and all(
                len(level) <= cap for level, cap in zip(tree.internal_levels, caps, strict=False)
            )
        )
        assert capped.expected[size - 1] == pytest.approx(best, abs=1e-12)
        tree = capped.tree(size)
        assert acceptance.expected_tokens(tree) == pytest.approx(best, abs=1e-12)
        widths = [len(level) for level in tree.internal_levels]
        assert capped.widths[size - 1].tolist() == widths + [0] * (4 - len(widths))


@given(
    table=rate_tables(depth=4, width=3),
    caps=st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=5),
    least=st.integers(1, 9),
)
def test_growing_many_together_is_growing_each_alone(
    table: np.ndarray, caps: list[list[int]], least: int
) -> None:
    table = without_ties(-np.sort(-table, axis=1))
    expected, widths = grow_many(table, np.array(caps), least, 9)
    for row, row_caps in enumerate(caps):
        alone = grow(table, row_caps, 9)
        sizes = max(0, len(alone.expected) + 1 - least)
        assert expected[row, :sizes] == pytest.approx(alone.expected[least - 1 :], abs=1e-12)
        assert np.isnan(expected[row, sizes:]).all()
        levels = widths.shape[2]
        assert (widths[row, :sizes] == alone.widths[least - 1 :, :levels]).all()
        assert not alone.widths[least - 1 :, levels:].any()


@pytest.mark.parametrize("rates", [[0.5, 0.25, 0.25], [1.0, 0.0], [0.4, 0.4, 0.1, 0.1], [0.0]])
def test_rates_without_ties_fall_and_stay_close(rates: list[float]) -> None:
    table = np.tile(rates, (5, 1))
    distinct = without_ties(table)
    assert abs(distinct - table).max() < 1e-9
    assert (distinct > 0).all()
    assert (distinct < 1).all()
    assert (np.diff(distinct, axis=1) < 0).all()
    pairs = np.multiply.outer(distinct[0], distinct[1])
    products = np.concatenate([distinct[0], pairs.ravel()])
    assert len(np.unique(products)) == len(products)


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fastest_tree_against_brute_force(kind: str, falling: bool) -> None:
    """Among all trees of up to 9 nodes: the optimum in 99% of cases, never more than 1% away."""
    generator = np.random.default_rng(2)
    shares = []
    for _ in range(150):
        acceptance = Acceptance(random_rates(generator, 4, falling))
        profile = random_profile(generator, kind, 9)
        solved = speed(solve(profile, acceptance).fastest.tree, acceptance, profile)
        shares.append(solved / fastest(acceptance, profile, 9)[1])
    assert np.mean(np.array(shares) > 1 - 1e-9) >= 0.99
    assert min(shares) >= 0.99


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_keeps_the_fastest_tree(kind: str, falling: bool) -> None:
    generator = np.random.default_rng(4)
    allowed = np.arange(10) > 0
    for _ in range(50):
        acceptance = Acceptance(random_rates(generator, 4, falling))
        profile = random_profile(generator, kind, 9)
        tree, best = fastest(acceptance, profile, 9)
        expected = best_trees(acceptance.table(8), 9).expected
        times = StepTimes(profile, "greedy", {0.0: 1.0})
        slower = best * (1 - 1e-6)
        assert may_be_faster(expected, times, slower, allowed)[tree.depth, tree.size]
        assert not may_be_faster(expected, times, 100 * best, allowed).any()


@pytest.mark.parametrize("falling", [True, False])
def test_most_tokens_are_fastest_where_width_costs_nothing(falling: bool) -> None:
    generator = np.random.default_rng(5)
    acceptance = Acceptance(random_rates(generator, 4, falling))
    profile = random_profile(generator, "monotone", 9)
    curve = profile.draft.curves[0]
    curve.median_ms[:] = curve.low_ms[:] = curve.high_ms[:] = 0.3
    plan = solve(profile, acceptance)
    times = StepTimes(profile, "greedy", {0.0: 1.0})
    best = float(np.nanmax(plan.speed)) / 1000
    assert not may_be_faster(plan.expected[:9], times, best, np.arange(10) > 0).any()
    assert best == pytest.approx(fastest(acceptance, profile, 9)[1])


def test_a_narrow_level_can_be_faster_than_most_tokens() -> None:
    """Three draft tokens cost thirty times two: the best tree is two wide, the fullest three."""
    generator = np.random.default_rng(0)
    profile = random_profile(generator, "monotone", 12)
    draft = profile.draft.curves[0]
    draft.median_ms[:] = [0.1, 0.1, *[3.0] * 10]
    draft.low_ms = draft.high_ms = draft.median_ms
    profile.target.curves[0].median_ms[:] = 10
    acceptance = Acceptance(np.array([0.35, 0.3, 0.25]))
    plan = solve(profile, acceptance, size=12)
    assert max(draft_passes(plan.fastest.tree)) == 2
    assert 1000 * speed(plan.fastest.tree, acceptance, profile) > 1.01 * np.nanmax(plan.speed)
