from __future__ import annotations

import numpy as np
import pytest
from brute_force import all_trees
from test_latency import curve, make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.step_times import Objective


def test_a_step_costs_what_the_profile_says() -> None:
    profile = make_profile()
    objective = Objective(profile, "greedy", {300.0: 1.0}, replicates=3)
    for tree in (*all_trees(5), shapes.k_sequences(3, 4)):
        wanted = profile.step_ms(tree, "greedy", 300)
        assert objective.step_ms(tree)[0] == pytest.approx(wanted)
        widths = np.zeros((1, 6), np.int64)
        widths[0, : len(tree.internal_levels)] = [len(level) for level in tree.internal_levels]
        assert objective.steps_ms(np.array([tree.size]), widths)[0] == pytest.approx(wanted)


def test_contexts_are_weighed() -> None:
    profile, tree = make_profile(), shapes.chain(3)
    objective = Objective(profile, "greedy", {128.0: 3.0, 1024.0: 1.0})
    wanted = 0.75 * profile.step_ms(tree, "greedy", 128) + 0.25 * profile.step_ms(
        tree, "greedy", 1024
    )
    assert objective.step_ms(tree)[0] == pytest.approx(wanted)


def test_replicates_spread_as_the_intervals_do() -> None:
    profile = make_profile()  # intervals of ± 10 %
    objective = Objective(profile, "greedy", {128.0: 1.0}, replicates=4000)
    times = objective.target_ms[1:, 8]
    low, high = np.quantile(times, [0.025, 0.975])
    middle = profile.target.at([8], 128)[0]
    assert low == pytest.approx(0.9 * middle, rel=0.02)
    assert high == pytest.approx(1.1 * middle, rel=0.02)


def test_what_was_not_measured_is_not_priced() -> None:
    profile = make_profile()
    profile.target.curves = [curve(128, [2, 4], [1, 2]), curve(1024, [2, 4], [1, 2])]
    with pytest.raises(SequoiaError, match="measured for 2 to 4 tokens a forward, not for 1"):
        Objective(profile, "greedy", {128.0: 1.0})
    objective = Objective(make_profile(), "greedy", {128.0: 1.0})
    with pytest.raises(SequoiaError, match="measured for 1 to 64 tokens a forward, not for 65"):
        objective.step_ms(shapes.chain(65))
    wide = np.array([[1, 65]])
    assert np.isinf(objective.steps_ms(np.array([60]), wide)).all()


def test_batches_have_their_own_curves() -> None:
    profile = make_profile()
    with pytest.raises(SequoiaError, match=r"batches \[1\], not for 4; profile with --batches"):
        Objective(profile, "greedy", {128.0: 1.0}, batch=4)
    for model in (profile.target, profile.draft):
        model.curves.append(curve(128, [1, 8], [40, 60], batch=4))
    objective = Objective(profile, "greedy", {128.0: 1.0}, batch=4)
    assert objective.largest == 8
    assert objective.target_ms[0, 1] == 40
