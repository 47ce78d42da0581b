"""What servers say of their guesses and of their settings."""

from __future__ import annotations

from checking import PROMPTS, server

from sequoia_opt.measure.check.counters import ReportedSettings, counters, reported_settings
from sequoia_opt.measure.check.dialects import Guesses


def test_vllm_counts_in_its_metrics() -> None:
    tested = server(kind="vLLM", guesses=3)
    before = counters(tested)
    tested.complete(PROMPTS[0], 40)
    after = counters(tested)
    assert before is not None
    assert after is not None
    assert before.guesses == Guesses(0, 0, 0)
    assert after.positions == 3
    made = after.guesses
    assert made.steps > 0
    assert made.accepted + made.steps <= 39
    assert made.drafted <= 3 * made.steps
    assert reported_settings(tested) == ReportedSettings(guesses=3)


def test_vllm_without_speculation_counts_none() -> None:
    tested = server(kind="vLLM", guesses=0)
    found = counters(tested)
    assert found is not None
    assert (found.guesses, found.positions) == (Guesses(0, 0, 0), 0)


def test_without_metrics_nothing_is_counted() -> None:
    assert counters(server(kind="vLLM", has_metrics=False)) is None
    assert counters(server(kind="other")) is None
    assert reported_settings(server(kind="other")) == ReportedSettings()


def test_llama_cpp_says_its_kind_and_what_is_loaded() -> None:
    """The kind with the last text's settings: before any text it is not known."""
    assert reported_settings(server()) == ReportedSettings(None, True)
    for options, expected in (
        ({}, ReportedSettings("draft-simple", True)),
        ({"fault": "no draft"}, ReportedSettings("draft-simple", False)),
        ({"guesses": 0}, ReportedSettings("none", False)),
    ):
        tested = server(**options)
        tested.complete(PROMPTS[0], 4)
        assert reported_settings(tested) == expected


def test_older_versions_of_it_say_the_numbers_too() -> None:
    extra = {"speculative.n_max": 16, "speculative.n_min": 5, "speculative.p_min": 0.9}
    assert reported_settings(server(extra=extra)) == ReportedSettings(None, True, 16, 5, 0.9)


def test_sglang_says_its_configuration() -> None:
    extra = {"speculative_algorithm": "STANDALONE", "speculative_num_draft_tokens": 4}
    assert reported_settings(server(kind="SGLang", extra=extra)) == ReportedSettings(
        "standalone", guesses=3
    )
    off = {"speculative_algorithm": None, "speculative_num_draft_tokens": None}
    assert reported_settings(server(kind="SGLang", extra=off)) == ReportedSettings("none")
    assert reported_settings(server(kind="SGLang")) == ReportedSettings()
