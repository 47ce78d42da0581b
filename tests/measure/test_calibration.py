from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from brute_force import random_profile

from sequoia_opt.measure import calibration
from sequoia_opt.measure.calibration import (
    CalibrationPart,
    CheckedTree,
    Comparison,
    calibrate,
)
from sequoia_opt.measure.calibration_plans import SMALLEST_MIDDLE, trees_around
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.measure.race import Race
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE

RATES = Acceptance(np.array([0.6, 0.2, 0.1]), traces=[[1, 1, 2, 0], [1, 0, 3, 1, 1, 1]])


@pytest.mark.parametrize("size", [1, 5, 9, 20])
def test_trees_from_two_nodes_to_twice_the_chosen_size(size: int) -> None:
    chosen = shapes.chain(size)
    found = trees_around(chosen, RATES, 64)
    assert next(iter(found.values())) == chosen
    assert len(set(found.values())) == len(found) >= 8
    sizes = {tree.size for tree in found.values()}
    assert {2, 2 * max(size, SMALLEST_MIDDLE)} <= sizes
    depths = {tree.depth for tree in found.values() if tree.size == max(sizes)}
    assert len(depths) > 1  # shallow and deep
    assert max(tree.size for tree in trees_around(chosen, RATES, max(size, 6)).values()) <= max(
        size, 6
    )


def test_chains_of_each_length_that_the_profile_can_price() -> None:
    found = trees_around(shapes.k_ary(2, 2), RATES, 64, chains=8)
    assert {shapes.chain(nodes) for nodes in range(2, 10)} <= set(found.values())
    assert len(set(found.values())) == len(found)
    assert shapes.chain(7) not in trees_around(shapes.k_ary(2, 1), RATES, 6, chains=8).values()


def test_errors_are_shares_of_the_measured_number() -> None:
    assert Comparison(predicted=3.3, measured=3.0).error == pytest.approx(0.1)


def checked(name: str, predicted: float, speed: float) -> CheckedTree:
    """A tree of which everything is measured to be 1, but for its speed over the chosen one's."""
    same = Comparison(predicted, 1.0)
    ratio = Comparison(1.0, speed)
    return CheckedTree(name, shapes.chain(3), same, same, same, same, same, same, ratio)


def test_the_errors_of_a_part_are_its_median_and_its_largest() -> None:
    trees = [checked("chosen", 1.1, 1.0), checked("a", 0.6, 0.9), checked("b", 1.2, 0.8)]
    part = CalibrationPart(Sampling(), trees)
    assert part.errors("speedup") == pytest.approx((0.2, 0.4))
    assert part.chose_fastest
    assert part.fastest.name == "chosen"


def test_a_faster_tree_than_the_chosen_one_is_found() -> None:
    part = CalibrationPart(Sampling(), [checked("chosen", 1, 1.0), checked("a", 1, 1.2)])
    assert not part.chose_fastest
    assert part.fastest.name == "a"


def test_predictions_are_the_solvers_and_times_are_in_plain_steps(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race in which a step takes twice a plain one and yields three tokens."""
    raced: list[str] = []

    def race(methods: list[Method], *_: object) -> Race:
        raced.extend(method.name for method in methods)
        texts = [20, 40]  # plain steps; a tree's yield as many tokens in two thirds of the time
        plain = [Run([], steps, steps, 0.01 * steps, steps) for steps in texts]
        other = [Run([], n // 4, 3 * n // 4, 0.02 * (n // 4), 3 * n // 4) for n in texts]
        return Race(methods, [*[other] * (len(methods) - 1), plain])

    class Interleaved:
        """On a machine on which the target takes twice as long as the profile on file says."""

        def __init__(
            self, pair: Any, tokens: list[int], context: int, sampling: Sampling, adaptive: bool
        ) -> None:
            assert not adaptive
            assert {1, 2, 8} <= set(tokens)
            self.context = context

        def round(self) -> None:
            pass

        def profile(self, like: LatencyProfile) -> LatencyProfile:
            today = deepcopy(like)
            today.draft.curves[0].context = self.context
            for curve in today.target.curves:
                curve.context = self.context
                for times in ("median_ms", "low_ms", "high_ms"):
                    setattr(curve, times, 2 * getattr(curve, times))
            return today

    monkeypatch.setattr(calibration, "race", race)
    monkeypatch.setattr(calibration, "Interleaved", Interleaved)
    profile = random_profile(np.random.default_rng(3), "monotone", 16)
    found = calibrate(make_pair(), profile, RATES, [[1, 2, 3]] * 2, 8)
    assert raced[-1] == "plain"
    assert [each.name for each in found] == raced[:-1]
    chosen = solve(profile, RATES, context=0).choice
    assert found[0].tree == chosen.tree
    assert found[0].tokens.predicted == pytest.approx(chosen.tokens[0])
    assert found[0].filed_step.predicted == pytest.approx(chosen.step_ms[0] / chosen.plain_ms[0])
    assert found[0].filed_speedup.predicted == pytest.approx(chosen.speedup[0])
    one, whole = profile.target.at([1, chosen.tree.size], 0)
    today = (chosen.step_ms[0] + whole) / (chosen.plain_ms[0] + one)
    assert found[0].step.predicted == pytest.approx(today)
    assert found[0].speedup.predicted == pytest.approx(chosen.tokens[0] / today, rel=0.01)
    for each in found:
        assert (each.tokens.measured, each.tokens.low, each.tokens.high) == (3, 3, 3)
        assert each.step.measured == pytest.approx(2)
        assert each.step_ms.measured == pytest.approx(20)
        assert each.speedup.measured == pytest.approx(1.5)
        assert each.speedup.low == each.speedup.high == pytest.approx(1.5)
        assert each.over_chosen.measured == pytest.approx(1)
        assert each.over_chosen.predicted == pytest.approx(
            each.speedup.predicted / found[0].speedup.predicted
        )
        assert each.document()["step"]["measured"] == pytest.approx(2)
        assert each.document()["beside_chosen"] == pytest.approx([1, 1, 1])
    assert AUTOREGRESSIVE not in [each.tree for each in found[1:]]
