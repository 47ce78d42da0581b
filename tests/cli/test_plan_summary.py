"""What `solve` says of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sequoia_opt.cli import plan_summary
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.solver import solve


def plan(ms_of_eight: float, **options: Any) -> Any:
    """On a machine where eight tokens take so long, and one takes ten milliseconds."""
    curve = Curve(1, 128, [1, 2, 8], *(np.array([10.0, 11.0, ms_of_eight]) for _ in range(3)))
    small = Curve(1, 128, [1, 2, 8], *(np.array([1.0, 1.0, 1.0]) for _ in range(3)))
    profile = LatencyProfile(
        {"name": "m"},
        {},
        {},
        ModelLatency("big", "", [curve]),
        ModelLatency("small", "", [small]),
        {"greedy": Overhead(0.0, 0.0, 0.0)},
    )
    return solve(profile, Acceptance(np.array([0.3, 0.1])), context=128, **options)


def test_a_tree_that_does_not_pay_is_not_called_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan_summary.plan_summary(plan(80.0, size=5))
    printed = capsys.readouterr().out
    assert printed.startswith("No tree pays. Best of those allowed: 5 nodes")
    assert "Best tree" not in printed
    plan_summary.plan_summary(plan(12.0, size=5))
    assert capsys.readouterr().out.startswith("Best tree: 5 nodes")


def test_a_tree_of_one_node_is_called_plain_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    for found in (plan(80.0, max_size=1), plan(800.0, max_width=1, shape="chain")):
        plan_summary.plan_summary(found)
    assert capsys.readouterr().out.count(": plain decoding.") >= 1
