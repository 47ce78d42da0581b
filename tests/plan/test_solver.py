from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_acceptance import rate_tables
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import BestFirst, DynamicProgramme, best_trees, solve
from sequoia_opt.plan.tree import TokenTree

REFERENCE = json.loads((Path(__file__).parent / "sequoia_reference_table.json").read_text())


@cache
def all_trees(size: int) -> tuple[TokenTree, ...]:
    """Every tree of `size` nodes, as sets of rank paths closed under parent and elder sibling."""
    if size == 1:
        return (shapes.chain(1),)
    found = set()
    for tree in all_trees(size - 1):
        for parent in range(tree.size):
            rank = int(tree.child_counts[parent]) + 1
            found.add(TokenTree.from_any_order([*tree.parents, parent], [*tree.ranks, rank]))
    return tuple(found)


def test_counts_of_all_trees_are_catalan() -> None:
    assert [len(all_trees(n)) for n in range(1, 8)] == [1, 1, 2, 5, 14, 42, 132]


def test_published_table() -> None:
    """The Sequoia research code's own results, in single precision."""
    table = np.tile(REFERENCE["acceptance"], (9, 1))
    wanted = np.array(REFERENCE["expected_tokens"], dtype=float)
    found = DynamicProgramme(table, 128).expected[:10, 1:]
    assert (np.isnan(found) == np.isnan(wanted)).all()
    assert np.nanmax(np.abs(found - wanted)) < 1e-5


@settings(max_examples=40)
@given(table=rate_tables(depth=4, width=4), by_depth=st.booleans())
def test_programme_against_brute_force(table: np.ndarray, by_depth: bool) -> None:
    if not by_depth:
        table = np.tile(table[0], (4, 1))
    family = DynamicProgramme(table, 7)
    acceptance = Acceptance(table[0], by_depth=table)
    for size, depth in product(range(1, 8), range(5)):
        values = [
            acceptance.expected_tokens(tree)
            for tree in all_trees(size)
            if tree.depth <= depth and tree.child_counts.max() <= 4
        ]
        if not values:
            assert np.isnan(family.expected[depth, size])
            continue
        assert family.expected[depth, size] == pytest.approx(max(values), abs=1e-12)
        tree = family.tree(size, depth)
        assert (tree.size, tree.depth <= depth) == (size, True)
        assert acceptance.expected_tokens(tree) == pytest.approx(max(values), abs=1e-12)


@settings(max_examples=40)
@given(table=rate_tables(depth=7, width=6), size=st.integers(1, 60), by_depth=st.booleans())
def test_best_first_against_the_programme(table: np.ndarray, size: int, by_depth: bool) -> None:
    table = -np.sort(-table, axis=1)
    if not by_depth:
        table = np.tile(table[0], (7, 1))
    quick, exact = BestFirst(table, size), DynamicProgramme(table, size)
    assert (np.isnan(quick.expected) == np.isnan(exact.expected)).all()
    assert np.nanmax(np.abs(quick.expected - exact.expected)) < 1e-12
    acceptance = Acceptance(table[0], by_depth=table)
    for depth in range(8):
        if np.isnan(exact.expected[depth, size]):
            continue
        for family in (quick, exact):
            tree = family.tree(size, depth)
            assert tree.depth <= depth
            assert acceptance.expected_tokens(tree) == pytest.approx(
                exact.expected[depth, size], abs=1e-12
            )


def test_the_method_follows_the_vector() -> None:
    assert isinstance(best_trees(Acceptance(np.array([0.5, 0.2, 0.2])), 9, 3), BestFirst)
    assert isinstance(best_trees(Acceptance(np.array([0.2, 0.8])), 9, 3), DynamicProgramme)
    # A rate by depth that rises anywhere needs the programme too.
    rising = Acceptance(np.array([0.5, 0.2]), by_depth=np.array([[0.5, 0.2], [0.1, 0.3]]))
    assert isinstance(best_trees(rising, 9, 3), DynamicProgramme)


def test_tokens_grow_with_the_logarithm_of_the_size() -> None:
    expected = best_trees(Acceptance(np.array(REFERENCE["acceptance"])), 512, 16).expected[16]
    gains = np.diff([expected[2**k] for k in range(3, 10)])
    assert (gains > 0.25).all()


def test_the_choice_is_the_fastest_tree_of_the_family() -> None:
    profile = make_profile()
    acceptance = Acceptance(np.array([0.6, 0.15, 0.08, 0.04]), verifier="greedy")
    plan = solve(profile, acceptance, context=300)
    family = best_trees(acceptance, 64, 16)
    speeds = {
        (depth, size): family.expected[depth, size]
        / profile.step_ms(family.tree(size, depth), "greedy", 300)
        for depth, size in product(range(17), range(1, 65))
        if not np.isnan(family.expected[depth, size])
    }
    assert plan.choice.tokens_per_second == pytest.approx(1000 * max(speeds.values()))
    plain = profile.step_ms(shapes.chain(1), "greedy", 300)
    assert plan.choice.speedup == pytest.approx(
        plan.choice.expected_tokens * plain / plan.choice.step_ms
    )
    assert plan.speedup_low <= plan.choice.speedup <= plan.speedup_high
    assert [b.name for b in plan.baselines] == ["plain", "chain", "k sequences"]
    assert all(b.tokens_per_second <= plan.choice.tokens_per_second for b in plan.baselines)
    sizes = [c.tree.size for c in (plan.choice, *plan.runners_up)]
    assert len(set(sizes)) == len(sizes) == 5


def test_hardware_decides_the_size() -> None:
    acceptance = Acceptance(np.array([0.6, 0.15, 0.08, 0.04]))
    flat = solve(make_profile(slope=0.001, draft_ms=0.05), acceptance).choice.tree
    steep = solve(make_profile(slope=2.0, draft_ms=0.05), acceptance).choice.tree
    assert flat.size == 64
    assert 1 < steep.size < 16


def test_no_speculation_where_it_does_not_pay() -> None:
    plan = solve(make_profile(draft_ms=50.0), Acceptance(np.array([0.6, 0.1])))
    assert plan.tree.size == 1
    assert plan.choice.speedup == 1
    assert (plan.speedup_low, plan.speedup_high) == (1, 1)


def test_replay_decides_among_the_finalists() -> None:
    """Traces in which every other guess is right: independence promises chains too much."""
    rates = np.array([0.5, 0.0])
    traces = [[1, 0] * 200 for _ in range(10)]
    profile = make_profile(slope=0.01, draft_ms=0.3)
    blind = solve(profile, Acceptance(rates, verifier="greedy"))
    replayed = solve(profile, Acceptance(rates, verifier="greedy", traces=traces))
    assert blind.choice.tree.depth > 1
    assert replayed.choice.tree.depth == 1
    assert replayed.choice.replayed_tokens == pytest.approx(2)
    assert replayed.choice.expected_tokens == pytest.approx(1.5)


def test_limits_are_kept() -> None:
    profile, acceptance = make_profile(slope=0.001), Acceptance(np.full(8, 0.1))
    assert solve(profile, acceptance, max_size=9).choice.tree.size <= 9
    assert solve(profile, acceptance, max_depth=2).choice.tree.depth <= 2
    fixed = solve(profile, acceptance, size=21, depth=2).choice.tree
    assert (fixed.size, fixed.depth) == (21, 2)
    assert solve(profile, acceptance, size=1).choice.tree.size == 1
    assert solve(profile, acceptance, max_depth=0).choice.tree.size == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 65}, "no point past 64 tokens, 65 asked for"),
        ({"max_size": 100}, "no point past 64 tokens, 100 asked for"),
        ({"size": 0}, "size: found 0"),
        ({"max_depth": -1}, "max_depth: found -1"),
        ({"size": 60, "depth": 1}, "no tree of 60 nodes is at most 1 deep with at most 2"),
        ({"context": 4096}, "not for 4096"),
    ],
)
def test_refuses_what_was_not_measured(options: dict[str, int], complaint: str) -> None:
    acceptance = Acceptance(np.array([0.5, 0.2]))
    with pytest.raises(SequoiaError, match=complaint):
        solve(make_profile(), acceptance, **options)  # type: ignore[arg-type]


def test_solving_twice_gives_the_same_tree() -> None:
    acceptance = Acceptance(np.array([0.5, 0.25, 0.25]))  # ties everywhere
    first, second = (solve(make_profile(slope=0.01), acceptance).tree for _ in range(2))
    assert first.document() == second.document()


def test_context_follows_the_measurement() -> None:
    rates = np.array([0.6, 0.1])
    assert solve(make_profile(), Acceptance(rates)).context == 512
    assert solve(make_profile(), Acceptance(rates, context=200.0)).context == 200
    assert solve(make_profile(), Acceptance(rates, context=5.0)).context == 128
