"""Sampled texts: the two samples, and what they can find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checking import PROMPTS, baseline, server

from sequoia_opt.measure.check import sampled as checked
from sequoia_opt.measure.check.dialects import Reading
from sequoia_opt.measure.check.reference import Reference
from sequoia_opt.measure.check.sampled import SamplingSpec, check_sampled
from sequoia_opt.measure.check.server import Completion
from sequoia_opt.measure.check.verdict import Finding, Status
from sequoia_opt.measure.progress import no_progress_bar
from sequoia_opt.plan.homogeneity import Comparison, Verdict


def spec(**changes: Any) -> SamplingSpec:
    chosen = {
        "prompts": PROMPTS, "samples": 60, "temperature": 0.8, "seed": 0, "parallel": 1,
        "needs_guesses": True,
    }  # fmt: skip
    return SamplingSpec(**{**chosen, **changes})


def sampled(spec: SamplingSpec, **options: Any) -> Finding:
    return check_sampled(server(**options), Reference(baseline()), spec, None, no_progress_bar)


def test_the_chance_of_a_false_alarm_is_the_level() -> None:
    """At once, or suspicious first and confirmed by fresh texts."""
    chance = checked.FAILS_AT_ONCE + checked.SUSPICIOUS * checked.FAILS_AFTER_MORE
    assert chance == pytest.approx(checked.LEVEL)


@pytest.mark.parametrize(
    ("p_values", "status", "samples"),
    [
        ([0.3], Status.OK, 60),
        ([1e-5], Status.FAILED, 60),
        ([0.01, 0.01], Status.OK, 240),
        ([0.01, 1e-4], Status.FAILED, 240),
    ],
)
def test_a_suspicious_sample_is_followed_by_a_larger_one(
    p_values: list[float], status: Status, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = []

    def verdict(comparisons: list[Comparison]) -> Verdict:
        stages.append(comparisons)
        return Verdict(comparisons, p_values[len(stages) - 1])

    monkeypatch.setattr(checked.homogeneity, "verdict", verdict)
    finding = sampled(spec(prompts=PROMPTS[:2]))
    assert (finding.status, finding.numbers["samples"]) == (status, samples)
    assert len(stages) == len(p_values)
    counts = [int(stage[0].cells.sum()) for stage in stages]
    assert counts == [2 * 60, 2 * 240][: len(stages)]
    if len(stages) == 2:  # the second one has texts of its own
        first, second = (stage[0].cells for stage in stages)
        assert first.shape != second.shape or np.any(4 * first != second)


def test_a_seed_fixes_the_verdict() -> None:
    seeds = (3, 3, 4, -3, -4)
    one, two, *others = (sampled(spec(seed=seed)).numbers["chi_square"] for seed in seeds)
    assert one == two
    assert len({one, *others}) == 4


def test_requests_at_a_time_change_nothing() -> None:
    assert sampled(spec(parallel=7)).numbers == sampled(spec()).numbers


def test_it_says_how_large_a_deviation_it_would_have_found() -> None:
    few, many = (sampled(spec(samples=count)) for count in (60, 240))
    assert 0.05 < many.numbers["detectable"] < few.numbers["detectable"] < 0.5
    percent = round(100 * many.numbers["detectable"])
    assert f"a deviation of {percent}% of the texts would have been found" in many.sentence


def test_texts_without_guesses_say_nothing() -> None:
    finding = sampled(spec(), fault="no draft")
    assert finding.status is Status.UNCHECKED
    assert "without a guess" in finding.sentence
    assert sampled(spec(needs_guesses=False), fault="no draft").status is Status.OK


def test_texts_that_never_repeat_say_nothing() -> None:
    finding = sampled(spec(prompts=PROMPTS[:1], samples=20, temperature=50.0))
    assert finding.status is Status.UNCHECKED
    assert "raise --samples" in finding.sentence


def test_without_tokens_more_characters_are_compared_than_a_first_token_may_have() -> None:
    by_token = Completion(Reading("of the text and more", (5, 6, 7, 8, 9, 4), 6), 0.1)
    assert checked._beginning(by_token, True) == (5, 6, 7, 8)
    assert checked._beginning(by_token, False) == tuple("of the text and ")


def test_a_fault_is_found_by_characters_too() -> None:
    other = Reference(baseline(kind="other"))
    found = check_sampled(
        server(kind="other", fault="accepts too much"),
        other,
        spec(samples=200),
        None,
        no_progress_bar,
    )
    assert found.status is Status.FAILED
    assert found.numbers["tokens"] is None
    assert "texts of up to 16 characters" in found.sentence
