"""Whether speculation is on, and whether its guesses are ever right."""

from __future__ import annotations

import pytest

from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.speculation import check_acceptance, check_speculation
from sequoia_opt.measure.check.verdict import Status

NONE, SOME = Guesses(0, 0, 300), Guesses(400, 200, 100)


@pytest.mark.parametrize(
    ("guesses", "is_expected", "status"),
    [
        (None, True, Status.UNCHECKED),
        (NONE, True, Status.FAILED),
        (SOME, True, Status.OK),
        (NONE, False, Status.OK),
        (SOME, False, Status.FAILED),
    ],
)
def test_speculation(guesses: Guesses | None, is_expected: bool, status: Status) -> None:
    assert check_speculation(guesses, ReportedSettings(), is_expected, 384).status is status


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ReportedSettings("draft-simple", is_loaded=False), "its draft was not loaded"),
        (ReportedSettings("none", is_loaded=False), "needs --spec-type besides a draft"),
        (ReportedSettings("ngram-simple", is_loaded=True), "ngram-simple found nothing to guess"),
        (ReportedSettings(), "see in its log"),
    ],
)
def test_why_it_is_not_on(settings: ReportedSettings, reason: str) -> None:
    assert reason in check_speculation(NONE, settings, True, 384).sentence


@pytest.mark.parametrize(
    ("guesses", "status"),
    [
        (None, Status.UNCHECKED),
        (Guesses(20, 0, 10), Status.UNCHECKED),
        (Guesses(1000, 3, 300), Status.FAILED),
        (Guesses(1000, 300, 300), Status.OK),
        (Guesses(1600, 30, 100), Status.OK),  # long chains of a poor draft
    ],
)
def test_acceptance(guesses: Guesses | None, status: Status) -> None:
    assert check_acceptance(guesses).status is status
