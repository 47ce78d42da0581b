"""All checks of a server together: planted faults are found, healthy servers pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from checking import PROMPTS, baseline, findings, run, server, statuses

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.checks import load_prompts
from sequoia_opt.measure.check.counters import counters
from sequoia_opt.measure.check.server import Server
from sequoia_opt.measure.check.verdict import Status

KINDS = ("llama.cpp", "vLLM", "SGLang")
# Only llama.cpp tells its own times, and no test depends on the clock's.
UNTIMED = ("greedy", "sampled", "speculation", "acceptance")


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_server_passes_20_times_of_20(seed: int) -> None:
    """Although it rounds otherwise in batches of another shape, and has ties."""
    report = run(server(rounding=0.05), baseline(rounding=0.05), seed=seed)
    assert set(statuses(report).values()) == {"OK"}, report.findings
    assert not report.fails(is_strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_server_is_its_own_baseline(kind: str) -> None:
    report = run(server(kind=kind), checks=UNTIMED)
    assert statuses(report) == dict.fromkeys(UNTIMED, "OK")
    assert report.reference == "the same server asked for one token at a time"
    assert report.server == {"url": "http://stand-in", "kind": kind, "model": "letters"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_baseline", [False, True])
def test_a_verifier_that_accepts_too_much_is_found(kind: str, has_baseline: bool) -> None:
    other = baseline(kind=kind) if has_baseline else None
    report = run(server(kind=kind, fault="accepts too much"), other, checks=UNTIMED)
    assert statuses(report) == {
        "greedy": "FAILED", "sampled": "FAILED", "speculation": "OK", "acceptance": "OK"
    }  # fmt: skip
    assert report.fails(is_strict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_that_never_loads_is_found(kind: str) -> None:
    report = run(server(kind=kind, fault="no draft"), baseline(kind=kind), checks=UNTIMED)
    assert statuses(report) == {
        "greedy": "OK", "sampled": "UNCHECKED", "speculation": "FAILED", "acceptance": "UNCHECKED"
    }  # fmt: skip
    assert findings(report)["speculation"].sentence.startswith("speculation is not on: 0 tokens")


@pytest.mark.parametrize("kind", KINDS)
def test_another_tokenizer_is_found(kind: str) -> None:
    report = run(server(kind=kind, fault="other tokenizer"), checks=UNTIMED)
    assert statuses(report) == {
        "greedy": "OK", "sampled": "OK", "speculation": "OK", "acceptance": "FAILED"
    }  # fmt: skip
    assert "another tokenizer" in findings(report)["acceptance"].sentence


def test_other_weights_are_told_from_a_fault_of_speculation() -> None:
    checks = ("greedy", "sampled", "speed")
    report = run(server(fault="other weights"), baseline(), checks=checks)
    assert statuses(report) == {"greedy": "FAILED", "sampled": "UNCHECKED", "speed": "UNCHECKED"}
    assert "different weights or number types" in report.findings[0].sentence
    for finding in report.findings[1:]:
        assert finding.sentence.endswith("see greedy")


def test_any_server_is_compared_by_characters() -> None:
    healthy = run(
        server(kind="other", rounding=0.01), baseline(kind="other"), checks=("greedy", "sampled")
    )
    assert statuses(healthy) == {"greedy": "OK", "sampled": "OK"}
    broken = run(
        server(kind="other", fault="accepts too much"),
        baseline(kind="other"),
        checks=("greedy", "sampled"),
    )
    assert statuses(broken) == {"greedy": "FAILED", "sampled": "FAILED"}


def test_what_cannot_be_checked_fails_only_if_strict() -> None:
    report = run(server(kind="other"))
    assert set(statuses(report).values()) == {"UNCHECKED"}
    assert not report.fails(is_strict=False)
    assert report.fails(is_strict=True)
    for finding in report.findings[:3]:
        assert "give --baseline URL" in finding.sentence


def test_speculation_that_should_be_off() -> None:
    report = run(server(), baseline(), expects_speculation=False, checks=UNTIMED)
    assert statuses(report) == {"greedy": "OK", "sampled": "OK", "speculation": "FAILED"}
    off = run(server(guesses=0, ms=0.9), baseline(), expects_speculation=False)
    assert set(statuses(off).values()) == {"OK"}
    assert "speed" in statuses(off)


def test_counters_of_other_clients_before_do_not_count() -> None:
    tested = server(kind="vLLM", fault="other tokenizer")
    first, second = (run(tested, checks=("acceptance",)) for _ in range(2))
    one, two = (findings(report)["acceptance"].numbers for report in (first, second))
    assert one["drafted"] == two["drafted"] > 0


@pytest.mark.parametrize("other", [None, baseline(kind="vLLM")], ids=["alone", "baseline"])
def test_guesses_are_counted_in_the_greedy_texts_alone(other: Server | None) -> None:
    """Not those of the text that shows what a server can do, where there is no baseline."""
    tested, counted = server(kind="vLLM"), server(kind="vLLM")
    for prompt in PROMPTS:
        counted.complete(counted.tokenize(prompt) or prompt, 48)
    expected = counters(counted)
    assert expected is not None
    numbers = findings(run(tested, other, checks=("acceptance",)))["acceptance"].numbers
    assert numbers["drafted"] == expected.guesses.drafted
    assert numbers["accepted"] == expected.guesses.accepted


def test_a_report_is_plain_data() -> None:
    document = run(server(), baseline()).document()
    assert [check["status"] for check in document["checks"]] == [str(Status.OK)] * 5
    assert document["checks"][0]["partings"] == []
    assert document["reference"] == "http://stand-in"


def test_prompts_are_a_dataset_s(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "abc"}\n{"text": "abcdef"}\n{"prompt": [1, 2]}\n{"prompt": "fed"}\n'
    )
    assert load_prompts(path, 8) == ["abc", "abc", "fed"]
    assert len(load_prompts(path, 2)) == 2


@pytest.mark.parametrize(
    "content", ['{"messages": [{"role": "user", "content": "a"}]}\n', '{"prompt": [1, 2]}\n']
)
def test_prompts_without_text_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(SequoiaError, match=r"prompts\.jsonl: found no prompt with text"):
        load_prompts(path, 8)


def test_one_prompt_is_enough_but_for_the_speed() -> None:
    report = run(server(), baseline(), prompts=PROMPTS[:1])
    assert statuses(report)["greedy"] == "OK"
    assert findings(report)["speed"].sentence == "1 prompt gives no interval; raise --limit"
