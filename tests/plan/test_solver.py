from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import best_trees
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.solver import solve


def test_the_fastest_tree_is_at_least_the_fastest_of_most_tokens() -> None:
    profile = make_profile()
    acceptance = Acceptance(np.array([0.6, 0.15, 0.08, 0.04]), verifier="greedy")
    plan = solve(profile, acceptance, context=300)
    best = best_trees(acceptance.table(16), 64)
    speeds = {
        (depth, size): best.expected[depth, size]
        / profile.step_ms(best.tree(size, depth), "greedy", 300)
        for depth, size in product(range(17), range(1, 65))
        if not np.isnan(best.expected[depth, size])
    }
    assert plan.fastest.tokens_per_second[0] >= 1000 * max(speeds.values()) * (1 - 1e-12)
    plain = profile.step_ms(shapes.chain(1), "greedy", 300)
    fastest = plan.fastest
    step = profile.step_ms(fastest.tree, "greedy", 300)
    assert fastest.step_ms[0] == pytest.approx(step)
    assert fastest.speedup[0] == pytest.approx(fastest.expected_tokens * plain / step)
    assert [b.name for b in plan.baselines] == ["plain", "chain", "k-sequences", "k-ary"]
    assert all(b.speedup[0] <= fastest.speedup[0] for b in plan.baselines)
    sizes = [c.tree.size for c in (plan.choice, *plan.runners_up)]
    assert len(set(sizes)) == len(sizes) == 5


def test_hardware_decides_the_size() -> None:
    acceptance = Acceptance(np.array([0.6, 0.15, 0.08, 0.04]))
    flat = solve(make_profile(slope=0.001, draft_ms=0.05), acceptance).fastest.tree
    steep = solve(make_profile(slope=2.0, draft_ms=0.05), acceptance).fastest.tree
    assert flat.size == 64
    assert 1 < steep.size < 16


def test_no_speculation_where_it_does_not_pay() -> None:
    plan = solve(make_profile(draft_ms=50.0), Acceptance(np.array([0.6, 0.1])))
    assert plan.tree.size == 1
    assert (plan.choice.speedup == 1).all()
    assert plan.tree.metadata["predicted"]["speedup_high"] == 1


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


def test_limits_are_respected() -> None:
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
def test_refuses_impossible_options(options: dict[str, Any], complaint: str) -> None:
    acceptance = Acceptance(np.array([0.5, 0.2]))
    with pytest.raises(SequoiaError, match=complaint):
        solve(make_profile(), acceptance, **options)


@pytest.mark.parametrize(("passes", "sampled"), [("none", "small"), ("level", "lookup")])
def test_a_lookup_and_a_model_are_not_mixed(passes: str, sampled: str) -> None:
    """The model's passes would cost nothing, or a lookup would draft trees."""
    profile = make_profile()
    curves = [] if passes == "none" else profile.draft.curves
    draft = replace(profile.draft, model="other", curves=curves, passes=passes)
    acceptance = Acceptance(np.array([0.6, 0.15]), verifier="greedy", draft=sampled)
    with pytest.raises(SequoiaError, match=rf"draft other and acceptance rates of {sampled}"):
        solve(replace(profile, draft=draft), acceptance)


def test_solving_twice_gives_the_same_tree() -> None:
    acceptance = Acceptance(np.array([0.5, 0.25, 0.25]))  # ties everywhere
    first, second = (solve(make_profile(slope=0.01), acceptance).tree for _ in range(2))
    assert first.document() == second.document()


def test_context_follows_the_measurement() -> None:
    rates = np.array([0.6, 0.1])
    assert solve(make_profile(), Acceptance(rates)).context == 512
    assert solve(make_profile(), Acceptance(rates, context=200.0)).context == 200
    assert solve(make_profile(), Acceptance(rates, context=5.0)).context == 128


@pytest.mark.parametrize("shape", ["chain", "k-sequences", "k-ary"])
def test_a_shape_restricts_the_trees(shape: str) -> None:
    acceptance = Acceptance(np.array([0.6, 0.2, 0.1]))
    profile = make_profile(slope=0.05, draft_ms=0.2)
    plan = solve(profile, acceptance, shape=shape, max_size=20)
    free = solve(profile, acceptance, max_size=20)
    assert 1 < plan.fastest.tree.size <= 20
    [same] = [b for b in free.baselines if b.name == shape]
    assert plan.fastest.tree == same.tree
    assert plan.fastest.speedup[0] <= free.fastest.speedup[0]
    assert solve(make_profile(draft_ms=90.0), acceptance, shape=shape).tree.size == 1


def test_max_width_limits_the_children() -> None:
    acceptance = Acceptance(np.array([0.3, 0.25, 0.2, 0.1]))
    plan = solve(make_profile(slope=0.01, draft_ms=0.1), acceptance, max_width=2)
    assert plan.tree.size > 2
    assert plan.tree.child_counts.max() == 2


def test_more_documents_justify_larger_trees() -> None:
    """The same rates: few documents cannot tell a large tree from a small one, many can."""
    generator = np.random.default_rng(0)
    rates = np.array([0.6, 0.15, 0.05])
    profile = make_profile(slope=0.12, draft_ms=0.2)
    for model in (profile.target, profile.draft):
        for curve in model.curves:
            curve.low_ms = curve.high_ms = curve.median_ms
    sizes = []
    for documents in (3, 300):
        draws = generator.choice(4, p=[0.2, *rates], size=(documents, 100))
        acceptance = Acceptance(rates, traces=draws.tolist(), verifier="greedy")
        plan = solve(profile, acceptance)
        assert plan.tree.size <= plan.fastest.tree.size
        sizes.append(plan.tree.size)
    assert sizes[0] < sizes[1]


def test_confidence_maximises_the_lower_bound() -> None:
    acceptance = Acceptance(
        np.array([0.6, 0.2]), low=np.array([0.55, 0.0]), high=np.array([0.65, 0.4])
    )
    profile = make_profile(slope=0.12, draft_ms=0.2)
    bold, careful = solve(profile, acceptance), solve(profile, acceptance, confidence=0.95)

    def sure(tree_speedups: np.ndarray) -> float:
        return float(np.quantile(tree_speedups, 0.05))

    assert sure(careful.choice.speedup) >= sure(bold.fastest.speedup)
    with pytest.raises(SequoiaError, match="confidence: found 1"):
        solve(profile, acceptance, confidence=1.0)


def test_replay_does_not_compete_with_independence() -> None:
    """Trees too deep for the traces do not compete with those that were replayed."""
    acceptance = Acceptance(np.array([0.97, 0.01]), traces=[[1] * 10 + [0, 1]] * 8)
    plan = solve(make_profile(slope=0.01, draft_ms=0.1), acceptance)
    assert plan.choice.replayed_tokens is not None
    assert plan.tree.depth <= 12


@pytest.mark.parametrize(
    "options", [{"size": 40, "max_depth": 1}, {"size": 8, "max_width": 1, "max_depth": 3}]
)
def test_refuses_options_that_no_tree_fits(options: dict[str, Any]) -> None:
    with pytest.raises(SequoiaError, match=f"no tree of {options['size']} nodes"):
        solve(make_profile(), Acceptance(np.array([0.5, 0.2])), **options)


def test_a_depth_past_the_deepest_tree_is_the_deepest() -> None:
    profile, acceptance = make_profile(), Acceptance(np.array([0.7, 0.1]), temperature=0)
    deep = solve(profile, acceptance, size=5, depth=10)
    assert deep.tree == solve(profile, acceptance, size=5, depth=4).tree
    assert deep.tree.size == 5


def test_trees_wider_than_the_draft_was_measured_are_left_out() -> None:
    """All trees of most tokens with 48 nodes are wider than 4; narrower trees exist."""
    profile = make_profile(slope=0.01)
    for curve in profile.draft.curves:
        keep = sum(count <= 4 for count in curve.tokens)
        curve.tokens = curve.tokens[:keep]
        for name in ("median_ms", "low_ms", "high_ms"):
            setattr(curve, name, getattr(curve, name)[:keep])
    acceptance = Acceptance(np.array([0.3, 0.25, 0.2, 0.1]), temperature=0)
    plan = solve(profile, acceptance, size=48)
    assert plan.tree.size == 48
    assert max(draft_passes(plan.tree)) <= 4


def test_given_trees_are_priced_and_never_chosen() -> None:
    profile, acceptance = make_profile(), Acceptance(np.array([0.7, 0.1]), temperature=0)
    best = solve(profile, acceptance)
    given = {"solved": best.tree, "chain": shapes.chain(3), "again": shapes.chain(3)}
    plan = solve(profile, acceptance, max_size=2, given=given)
    assert plan.tree.size == 2
    assert [(c.name, c.tree) for c in plan.given] == list(given.items())
    assert plan.given[0].speedup[0] == pytest.approx(best.choice.speedup[0])
    assert [c.tree.size for c in plan.baselines if c.name == "chain"] == [2]
    with pytest.raises(SequoiaError, match="long: target: measured for 1 to 64 tokens"):
        solve(profile, acceptance, given={"long": shapes.chain(65)})


def test_refuses_a_draft_without_a_point_for_two_tokens() -> None:
    profile = make_profile()
    for curve in profile.draft.curves:
        curve.tokens = curve.tokens[:1]
        curve.median_ms = curve.low_ms = curve.high_ms = curve.median_ms[:1]
    with pytest.raises(SequoiaError, match="draft has no point for 2 tokens"):
        solve(profile, Acceptance(np.array([0.5])))
    assert solve(profile, Acceptance(np.array([0.5])), size=1).tree.size == 1


def test_refuses_an_overhead_that_leaves_no_time() -> None:
    with pytest.raises(SequoiaError, match="found -50 ms"):
        solve(make_profile(overhead=-50.0), Acceptance(np.array([0.5]), verifier="greedy"))
