from __future__ import annotations

from dataclasses import replace

import numpy as np
from recordings import make_recording, measured
from test_latency import make_profile, with_adaptive_overhead

from sequoia_opt.measure.calibration_plans import plans_to_race, tokens_of_passes
from sequoia_opt.plan import shapes
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.solver import solve

RECORDING = make_recording([80] * 12, sureness=2.0)


def adaptive_plan(recording: Recording) -> Plan:
    """A plan at context 200 on a machine on which adaptive plans pay."""
    profile = with_adaptive_overhead(make_profile(slope=0.6, draft_ms=2.5))
    rates = measured(recording)
    return solve(profile, rates, recording=recording, replicates=20, context=200)


def test_the_chosen_plan_races_first_and_each_adaptive_plan_once() -> None:
    plan = adaptive_plan(RECORDING)
    assert plan.choice.tree.policy is not None
    assert plan.adaptive is not None
    raced = plans_to_race(plan, 64)
    names = list(raced)
    assert names[:2] == ["chosen", "static"]
    assert raced["chosen"].policy == plan.choice.tree.policy
    assert raced["static"] == plan.choice.tree.static
    policies = [tree.policy for tree in raced.values() if tree.policy is not None]
    assert len(policies) == len(plan.adaptive.adaptive)
    assert {one.tree.policy for one in plan.adaptive.adaptive} == set(policies)
    assert "4 nodes" in names or "8 nodes" in names


def test_a_static_choice_races_first_beside_adaptive_plans() -> None:
    plan = adaptive_plan(RECORDING)
    static = solve(plan.profile, measured(RECORDING), static=True, replicates=20)
    raced = plans_to_race(replace(static, adaptive=plan.adaptive), 64)
    assert raced["chosen"] == static.choice.tree
    assert "static" not in raced
    assert plan.adaptive is not None
    assert sum(tree.policy is not None for tree in raced.values()) == len(plan.adaptive.adaptive)
    alone = plans_to_race(static, 64)
    assert all(tree.policy is None for tree in alone.values())


def test_every_pass_of_a_plan_has_a_time() -> None:
    profile = make_profile()
    assert tokens_of_passes(shapes.k_ary(2, 2), profile) == {7, 2}
    of_head = replace(profile, draft=replace(profile.draft, passes="head"))
    assert tokens_of_passes(shapes.k_ary(2, 3), of_head) == {15, 4, 2}
    plan = adaptive_plan(RECORDING).choice.tree
    assert plan.policy is not None
    tokens = tokens_of_passes(plan, profile)
    assert {1, 2, *plan.policy.sizes} <= tokens
    assert max(tokens) == max(plan.policy.largest_size, plan.policy.width, 2)
    assert np.all(np.array(sorted(tokens)) >= 1)
