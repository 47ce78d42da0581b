"""Settings against the solved ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checking import PROMPTS, findings, run, server
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.checks import CheckSpec, check
from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.settings import (
    Optimum,
    check_settings,
    optimum_of_measurements,
    optimum_of_plan,
)
from sequoia_opt.measure.check.verdict import Status
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree

ON = Guesses(400, 200, 100)


@pytest.mark.parametrize(
    ("settings", "guesses", "solved", "status"),
    [
        (ReportedSettings(guesses=4), ON, 4, Status.OK),
        (ReportedSettings(guesses=8), ON, 4, Status.OK),
        (ReportedSettings(guesses=16), ON, 4, Status.FAILED),
        (ReportedSettings(guesses=1), ON, 4, Status.FAILED),
        (ReportedSettings(guesses=4), ON, 0, Status.FAILED),  # plain decoding is best
        (ReportedSettings(guesses=4), Guesses(0, 0, 9), 0, Status.OK),
        (ReportedSettings(), ON, 4, Status.OK),  # 4 in a step on average
        (ReportedSettings(), None, 4, Status.UNCHECKED),
        (ReportedSettings(guesses=4, least_guesses=5), ON, 4, Status.FAILED),
        (ReportedSettings(guesses=4, least_probability=0.75), ON, 4, Status.FAILED),
    ],
)
def test_against_a_plan(
    settings: ReportedSettings, guesses: Guesses | None, solved: int, status: Status
) -> None:
    assert check_settings(Optimum(solved), settings, guesses).status is status


def test_a_threshold_is_compared_too() -> None:
    optimum = Optimum(8, threshold=0.5)
    assert (
        check_settings(optimum, ReportedSettings(guesses=8, least_probability=0.5), ON).status
        is Status.OK
    )
    found = check_settings(optimum, ReportedSettings(guesses=8, least_probability=0.0), ON)
    assert found.status is Status.FAILED
    assert "p_min is 0 (solved: 0.5)" in found.sentence
    # Below a threshold chains end early, so that their mean says nothing.
    assert check_settings(optimum, ReportedSettings(), ON).status is Status.UNCHECKED


def test_a_plan_s_chain_or_rule_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    shapes.chain(4).save(path)
    assert optimum_of_plan(path, "llama.cpp") == Optimum(3)
    rule = {"guesses": 8, "threshold": 0.25, "speedup": 2.0, "low": 1.9, "high": 2.1}
    chain = shapes.chain(4)
    TokenTree(chain.parents, chain.ranks, {"rules": {"dropping_chain": rule}}).save(path)
    assert optimum_of_plan(path, "llama.cpp") == Optimum(8, 0.25)
    assert optimum_of_plan(path, "vLLM") == Optimum(3)
    shapes.k_ary(2, 2).save(path)
    with pytest.raises(SequoiaError, match="found a tree, expected a chain"):
        optimum_of_plan(path, "vLLM")


@pytest.fixture
def measured(tmp_path: Path) -> Optimum:
    make_profile().save(tmp_path / "p.yaml")
    rates: Any = [0.8, 0.1]
    Acceptance(rates).save(tmp_path / "a.yaml")
    return optimum_of_measurements(tmp_path / "p.yaml", tmp_path / "a.yaml")


def test_measurements_say_what_other_settings_lose(measured: Optimum) -> None:
    assert measured.profile is not None
    assert measured.acceptance is not None
    best = check_settings(measured, ReportedSettings(guesses=measured.guesses), ON)
    assert (best.status, best.numbers["predicted_loss"]) == (Status.OK, 0.0)
    far = measured.guesses + 12
    found = check_settings(measured, ReportedSettings(guesses=far), ON)
    given = {"far": shapes.chain(far + 1)}
    plan = solve(measured.profile, measured.acceptance, shape="chain", static=True, given=given)
    loss = 1 - plan.given[0].speedup[0] / plan.choice.speedup[0]
    assert found.numbers["predicted_loss"] == pytest.approx(loss)
    assert (found.status is Status.FAILED) == (loss > 0.1)


def test_a_chain_that_was_not_measured_is_compared_by_its_length(measured: Optimum) -> None:
    found = check_settings(measured, ReportedSettings(guesses=500), ON)
    assert found.status is Status.FAILED
    assert "predicted_loss" not in found.numbers


def test_without_a_plan_it_is_left_out() -> None:
    assert "settings" not in findings(run(server(), checks=("settings", "speculation")))
    spec = CheckSpec(prompts=PROMPTS, checks=("settings",))
    report = check(server(kind="vLLM", guesses=4), None, spec, Optimum(4))
    assert [finding.check for finding in report.findings] == ["settings"]
    assert report.findings[0].status is Status.OK
