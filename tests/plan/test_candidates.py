from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.candidates import SearchSpace, baseline_trees, candidate_trees, surface
from sequoia_opt.plan.solve_options import SolveOptions
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import AUTOREGRESSIVE

ACCEPTANCE = Acceptance(np.array([0.6, 0.15, 0.08]))
PROFILE = make_profile()  # up to 64 tokens
TIMES = StepTimes(PROFILE, "greedy", {300.0: 1.0})


def space_of(**options: Any) -> SearchSpace:
    return SearchSpace.of(SolveOptions(**options), PROFILE, ACCEPTANCE, TIMES)


@pytest.mark.parametrize(
    ("options", "sizes", "max_depth", "fixed_depth"),
    [
        ({}, range(1, 65), 32, None),
        ({"max_size": 5}, range(1, 6), 4, None),
        ({"max_size": 9, "max_depth": 2}, range(1, 10), 2, None),
        ({"size": 7}, [7], 6, None),
        ({"size": 7, "depth": 3}, [7], 3, 3),
        ({"size": 7, "depth": 10}, [7], 6, 6),
        ({"depth": 3, "max_depth": 2}, range(1, 65), 3, 3),
    ],
)
def test_options_leave_a_space(
    options: dict[str, Any], sizes: list[int], max_depth: int, fixed_depth: int | None
) -> None:
    space = space_of(**options)
    assert np.flatnonzero(space.allowed).tolist() == list(sizes)
    assert (space.max_depth, space.depth) == (max_depth, fixed_depth)
    assert space.child_rates.shape == (max_depth, 3)


def test_max_width_drops_ranks() -> None:
    assert space_of(max_width=2).table.shape == (32, 2)


def test_the_surface_has_the_speed_of_each_best_tree_once() -> None:
    space = space_of(max_size=12, max_depth=4)
    best = best_trees(space.table, space.max_size)
    speed = surface(best, TIMES, space)
    for depth, size in np.argwhere(np.isfinite(speed)):
        tree = best.tree(size, depth)
        step_ms = PROFILE.step_ms(tree, "greedy", 300)
        assert speed[depth, size] == pytest.approx(
            1000 * ACCEPTANCE.expected_tokens(tree) / step_ms
        )
        assert tree.depth == depth  # a shallower tree stands at its own depth
    assert np.isfinite(speed).any(axis=0)[1:].all()


def test_candidates_are_distinct_and_fit_the_space() -> None:
    space = space_of(max_size=12, max_depth=4)
    best = best_trees(space.table, space.max_size)
    trees = candidate_trees(best, surface(best, TIMES, space), TIMES, space)
    assert len(set(trees)) == len(trees) > 4
    assert all(tree.size <= 12 and tree.depth <= 4 for tree in trees)


def test_baselines_are_plain_decoding_and_each_shape() -> None:
    named = baseline_trees(TIMES, space_of(max_size=12))
    assert named[0] == ("plain", AUTOREGRESSIVE)
    assert set(dict(named)) == {"plain", "chain", "k-sequences", "k-ary"}
    assert all(tree.size <= 12 for _, tree in named)
    assert baseline_trees(TIMES, space_of(size=1)) == [("plain", AUTOREGRESSIVE)]


def test_refuses_a_size_past_the_measured_ones() -> None:
    with pytest.raises(SequoiaError, match="no point past 64 tokens, 65 asked for"):
        space_of(size=65)
