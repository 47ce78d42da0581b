from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from brute_force import all_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from test_acceptance import rate_tables

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import BestFirst, DynamicProgram, best_trees

REFERENCE = json.loads((Path(__file__).parent / "sequoia_reference_table.json").read_text())


def test_counts_of_all_trees_are_catalan() -> None:
    assert [len(all_trees(n)) for n in range(1, 8)] == [1, 1, 2, 5, 14, 42, 132]


def test_the_published_table_is_reproduced() -> None:
    """The Sequoia research code's own results, in single precision."""
    table = np.tile(REFERENCE["acceptance"], (9, 1))
    published = np.array(REFERENCE["expected_tokens"], dtype=float)
    expected = DynamicProgram(table, 128).expected[:10, 1:]
    assert (np.isnan(expected) == np.isnan(published)).all()
    assert np.nanmax(np.abs(expected - published)) < 1e-5


@settings(max_examples=40)
@given(table=rate_tables(depth=4, width=4), by_depth=st.booleans())
def test_dynamic_programming_against_brute_force(table: np.ndarray, by_depth: bool) -> None:
    if not by_depth:
        table = np.tile(table[0], (4, 1))
    best = DynamicProgram(table, 7)
    acceptance = Acceptance(table[0], by_depth=table)
    for size, depth in product(range(1, 8), range(5)):
        values = [
            acceptance.expected_tokens(tree)
            for tree in all_trees(size)
            if tree.depth <= depth and tree.child_counts.max() <= 4
        ]
        if not values:
            assert np.isnan(best.expected[depth, size])
            continue
        assert best.expected[depth, size] == pytest.approx(max(values), abs=1e-12)
        tree = best.tree(size, depth)
        assert (tree.size, tree.depth <= depth) == (size, True)
        assert acceptance.expected_tokens(tree) == pytest.approx(max(values), abs=1e-12)


@settings(max_examples=40)
@given(table=rate_tables(depth=7, width=6), size=st.integers(1, 60), by_depth=st.booleans())
def test_best_first_against_dynamic_programming(
    table: np.ndarray, size: int, by_depth: bool
) -> None:
    table = -np.sort(-table, axis=1)
    if not by_depth:
        table = np.tile(table[0], (7, 1))
    quick, exact = BestFirst(table, size), DynamicProgram(table, size)
    assert (np.isnan(quick.expected) == np.isnan(exact.expected)).all()
    assert np.nanmax(np.abs(quick.expected - exact.expected)) < 1e-12
    acceptance = Acceptance(table[0], by_depth=table)
    for depth in range(8):
        if np.isnan(exact.expected[depth, size]):
            continue
        for best in (quick, exact):
            tree = best.tree(size, depth)
            assert tree.depth <= depth
            assert acceptance.expected_tokens(tree) == pytest.approx(
                exact.expected[depth, size], abs=1e-12
            )


def test_the_method_follows_the_vector() -> None:
    assert isinstance(best_trees(np.array([[0.5, 0.2, 0.2]] * 3), 9), BestFirst)
    assert isinstance(best_trees(np.array([[0.2, 0.8]] * 3), 9), DynamicProgram)
    # A rate by depth that rises anywhere needs dynamic programming too.
    assert isinstance(best_trees(np.array([[0.5, 0.2], [0.1, 0.3]]), 9), DynamicProgram)


def test_tokens_grow_with_the_logarithm_of_the_size() -> None:
    expected = best_trees(np.tile(REFERENCE["acceptance"], (16, 1)), 512).expected[16]
    gains = np.diff([expected[2**k] for k in range(3, 10)])
    assert (gains > 0.25).all()


@settings(max_examples=20)
@given(table=rate_tables(depth=4, width=3), falling=st.booleans(), by_depth=st.booleans())
def test_widths_are_those_of_the_trees(table: np.ndarray, falling: bool, by_depth: bool) -> None:
    if falling:
        table = -np.sort(-table, axis=1)
    if not by_depth:
        table = np.tile(table[0], (4, 1))
    methods = [DynamicProgram, BestFirst] if falling else [DynamicProgram]
    for best in (method(table, 12) for method in methods):
        widths = best.widths()
        for depth, size in product(range(5), range(1, 13)):
            if not np.isnan(best.expected[depth, size]):
                levels = best.tree(size, depth).internal_levels
                counts = [len(level) for level in levels] + [0] * (4 - len(levels))
                assert widths[depth, size].tolist() == counts


def test_a_thousand_nodes() -> None:
    """Best-first and dynamic programming agree where brute force cannot reach."""
    rates = np.sort(REFERENCE["acceptance"])[::-1]
    quick, exact = (method(np.tile(rates, (6, 1)), 300) for method in (BestFirst, DynamicProgram))
    assert np.nanmax(np.abs(quick.expected - exact.expected)) < 1e-10
    large = BestFirst(np.tile(rates, (32, 1)), 1024)
    assert not np.isnan(large.expected[32, 1:]).any()
    tree = large.tree(1024, 32)
    assert Acceptance(rates).expected_tokens(tree) == pytest.approx(large.expected[32, 1024])


@pytest.mark.parametrize(("size", "advantage"), [(64, 1.16), (128, 1.23), (256, 1.30), (512, 1.39)])
def test_published_advantage_over_k_sequences(size: int, advantage: float) -> None:
    """Depth without limit, the vector of the research code."""
    table = np.tile(REFERENCE["acceptance"], (64, 1))
    tree = best_trees(table, size).expected[64, size]
    sequences = shapes.shaped_trees(table, size)["k-sequences"].expected
    assert tree / np.nanmax(sequences) == pytest.approx(advantage, abs=0.01)


@pytest.mark.parametrize("by_depth", [False, True])
def test_dynamic_programming_stops_where_depth_gains_nothing(by_depth: bool) -> None:
    """Depth limits past the deepest best tree give the same trees."""
    rates = np.array([[0.1, 0.3, 0.2]] * 20)
    if by_depth:
        rates[2] = [0.0, 0.0, 0.9]
    shallow, deep = DynamicProgram(rates[:14], 24), DynamicProgram(rates, 24)
    assert (deep.expected[:15] == shallow.expected)[np.isfinite(shallow.expected)].all()
    for depth in (14, 17, 20):
        assert (deep.expected[depth, 1:] == deep.expected[14, 1:]).all()
        assert (deep.widths()[depth] == deep.widths()[14]).all()
        assert deep.tree(24, depth) == deep.tree(24, 14)
    table = Acceptance(rates[0], by_depth=rates)
    assert table.expected_tokens(deep.tree(24, 20)) == pytest.approx(deep.expected[20, 24])
