"""Speed: paired by prompt, from the server's own times or from the clock's."""

from __future__ import annotations

from typing import Any

import pytest
from checking import PROMPTS, baseline, server

from sequoia_opt.measure.check.counters import ReportedSettings
from sequoia_opt.measure.check.dialects import Reading
from sequoia_opt.measure.check.reference import OneByOne, Reference
from sequoia_opt.measure.check.server import Completion
from sequoia_opt.measure.check.speed import check_speed
from sequoia_opt.measure.check.verdict import Finding, Status
from sequoia_opt.measure.progress import no_progress_bar

SILENT = ReportedSettings()


def speed(plain_ms: float, **options: Any) -> Finding:
    tested = server(**options)
    plain = Reference(baseline(ms=plain_ms))
    return check_speed(tested, plain, PROMPTS, SILENT, 48, 2, no_progress_bar)


@pytest.mark.parametrize(
    ("plain_ms", "status", "words"),
    [
        (1.0, Status.OK, "faster than without speculation"),
        (0.2, Status.FAILED, "slower than without speculation; leave speculation off"),
    ],
)
def test_faster_and_slower(plain_ms: float, status: Status, words: str) -> None:
    finding = speed(plain_ms)
    assert finding.status is status
    assert words in finding.sentence


def test_the_same_server_is_as_fast() -> None:
    finding = speed(1.0, guesses=0)
    assert (finding.status, finding.numbers["speedup"]) == (Status.OK, pytest.approx(1.0))
    assert "as fast as without speculation" in finding.sentence


def test_numbers_are_those_of_the_server_s_own_times() -> None:
    numbers = speed(1.0).numbers
    assert numbers["baseline_tokens_per_second"] == pytest.approx(1000, rel=1e-3)
    ratio = numbers["tokens_per_second"] / numbers["baseline_tokens_per_second"]
    assert numbers["speedup"] == pytest.approx(ratio)
    assert numbers["speedup_low"] <= ratio <= numbers["speedup_high"]


class Clocked:
    """A server with so many seconds for a prompt that is not cached, and for each new token.

    It tells a time of its own, if it does, that is none.
    """

    is_same_server = is_one_by_one = False
    url = "http://clocked"

    def __init__(self, per_token: float, prompt: float, tells: float | None = None) -> None:
        self.per_token, self.prompt_seconds, self.tells = per_token, prompt, tells
        self.cached = ""
        self.server = self

    def prompt(self, text: str) -> str:
        return text

    def complete(self, prompt: str, new_tokens: int, *_: Any) -> Completion:
        seconds = self.per_token * (new_tokens - 1)
        seconds += 0.0 if prompt == self.cached else self.prompt_seconds
        self.cached = prompt
        return Completion(Reading("a" * new_tokens, (), new_tokens, self.tells), seconds)


@pytest.mark.parametrize("tells", [None, 77.0])
def test_unless_both_tell_times_the_clock_s_count_but_for_the_first_token(
    tells: float | None,
) -> None:
    tested: Any = Clocked(0.01, prompt=5.0, tells=tells)
    plain: Any = Clocked(0.02, prompt=0.1)
    finding = check_speed(tested, plain, PROMPTS, SILENT, 11, 1, no_progress_bar)
    assert finding.numbers["tokens_per_second"] == pytest.approx(100)
    assert finding.numbers["speedup"] == pytest.approx(2.0)


@pytest.mark.parametrize("silent", [0, 1])
def test_a_server_that_does_not_count_its_tokens_is_not_timed(
    silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[Any] = [Clocked(0.01, prompt=0.0), Clocked(0.01, prompt=0.0)]
    for number, side in enumerate(sides):
        side.url = f"http://{number}"
    monkeypatch.setattr(
        sides[silent], "complete", lambda *_: Completion(Reading("aa", (), None), 1.0)
    )
    finding = check_speed(sides[0], sides[1], PROMPTS, SILENT, 11, 1, no_progress_bar)
    assert finding.status is Status.UNCHECKED
    assert f"http://{silent} does not say how many tokens" in finding.sentence


def test_a_server_whose_own_clock_sees_no_time_is_no_error() -> None:
    instant: Any = Clocked(0.01, prompt=0.0, tells=0.0)
    finding = check_speed(instant, instant, PROMPTS, SILENT, 11, 1, no_progress_bar)
    assert (finding.status, finding.numbers["speedup"]) == (Status.OK, pytest.approx(1.0))


@pytest.mark.parametrize("kind", ["ngram-mod", "draft-simple,ngram-map-k"])
def test_a_server_that_remembers_texts_is_not_timed_on_them(kind: str) -> None:
    tested: Any = Clocked(0.01, prompt=0.0)
    reported = ReportedSettings(kind=kind)
    finding = check_speed(tested, tested, PROMPTS, reported, 11, 1, no_progress_bar)
    assert finding.status is Status.UNCHECKED
    assert f"{kind.split(',')[-1]} guesses from the texts of earlier requests" in finding.sentence
    assert not tested.cached


def test_one_token_at_a_time_tells_no_speed() -> None:
    tested = server()
    finding = check_speed(tested, OneByOne(tested), PROMPTS, SILENT, 48, 1, no_progress_bar)
    assert finding.status is Status.UNCHECKED
    assert "--baseline" in finding.sentence
