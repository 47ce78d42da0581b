"""The command `check` against servers over HTTP: what it prints, and its exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import Outcome, write
from stand_in_server import StandIn, serving

from sequoia_opt.plan import shapes

Run = Callable[..., Outcome]
FEW = ["--samples", 40, "--repeats", 1, "--limit", 2, "--max-new-tokens", 24]


@contextmanager
def two(**options: object) -> Iterator[list[object]]:
    """The arguments that check a server against one without speculation."""
    plain = StandIn(guesses=0, ms=0.9)
    with serving(StandIn(**options)) as url, serving(plain) as other:  # type: ignore[arg-type]
        yield [url, "--baseline", other, *FEW]


def test_a_healthy_server_passes(run: Run) -> None:
    with two() as arguments:
        done = run("check", *arguments, "--strict")
    assert done.code == 0, done.err
    first, second, *verdicts, last = done.out.splitlines()
    assert first.startswith("http://127.0.0.1:")
    assert first.endswith(": llama.cpp, serving letters")
    assert second.startswith("compared with http://127.0.0.1:")
    names = ["greedy", "sampled", "speed", "speculation", "acceptance"]
    assert [line.split()[:2] for line in verdicts] == [[name, "ok"] for name in names]
    assert last == "all checks passed"


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("accepts too much", r"greedy +FAILED .* too far apart for rounding"),
        ("no draft", r"speculation +FAILED +speculation is not on: 0 tokens"),
        ("other tokenizer", r"acceptance +FAILED .* another tokenizer than the target's"),
    ],
)
def test_a_fault_ends_in_status_1(fault: str, line: str, run: Run) -> None:
    with two(fault=fault) as arguments:
        done = run("check", *arguments)
    assert done.code == 1
    assert done.err == ""
    assert re.search(line, done.out)
    assert re.search(r"^failed: \w+", done.out, re.MULTILINE)


@pytest.mark.parametrize("option", [["--json"], ["--format", "json"]])
def test_json_is_one_document(option: list[str], run: Run) -> None:
    with two(fault="no draft") as arguments:
        done = run("check", *arguments, *option)
    assert done.code == 1
    document = json.loads(done.out)
    assert document["ok"] is False
    assert document["server"]["kind"] == "llama.cpp"
    statuses = {check["check"]: check["status"] for check in document["checks"]}
    assert statuses["speculation"] == "failed"
    assert statuses["sampled"] == "could not be checked"


def test_what_could_not_be_checked_counts_if_strict(run: Run) -> None:
    with serving(StandIn(kind="other")) as url:
        lenient, strict = (run("check", url, *FEW, *extra) for extra in ([], ["--strict"]))
    assert (lenient.code, strict.code) == (0, 1)
    assert lenient.out == strict.out
    assert "compared with nothing" in lenient.out
    assert "could not be checked: greedy, sampled, speed" in lenient.out


def test_some_checks_only(run: Run) -> None:
    with serving(StandIn()) as url:
        done = run("check", url, *FEW, "--only", "speculation,acceptance", "--strict")
    assert done.code == 0
    assert len(done.out.splitlines()) == 5


def test_speculation_may_be_expected_to_be_off(run: Run) -> None:
    with serving(StandIn(guesses=0)) as url:
        done = run("check", url, *FEW, "--only", "speculation", "--no-expect-speculation")
    assert done.code == 0
    assert "speculation is off, as it should be" in done.out


def test_settings_are_compared_with_a_plan(run: Run) -> None:
    shapes.chain(3).save("tree.json")
    with serving(StandIn(guesses=12, extra={"speculative.n_max": 12})) as url:
        done = run("check", url, *FEW, "--only", "settings", "--plan", "tree.json")
        assert done.code == 1
        assert "12 guesses in a step (solved: 2); far from the solved optimum" in done.out
        shapes.chain(11).save("tree.json")
        assert run("check", url, *FEW, "--only", "settings", "--plan", "tree.json").code == 0


def test_the_key_may_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(StandIn(api_key="secret")) as url:
        only = ["--only", "speculation"]
        assert "asks for an API key" in run("check", url, *FEW, *only).err
        assert run("check", url, *FEW, *only, "--api-key", "secret").code == 0
        monkeypatch.setenv("SEQUOIA_OPT_API_KEY", "secret")
        assert run("check", url, *FEW, *only).code == 0


def test_prompts_may_be_a_dataset_s(run: Run) -> None:
    path = write("prompts.jsonl", '{"prompt": "abc"}\n{"prompt": "fed"}\n')
    with serving(StandIn()) as url:
        done = run("check", url, *FEW, "--only", "greedy", "--prompts", path)
        assert done.code == 0
        assert "2 of 2 texts of 24 tokens are equal" in done.out
        path = write("prompts.jsonl", '{"prompt": [1, 2]}\n')
        done = run("check", url, "--prompts", path)
    assert done.code == 1
    assert done.err.startswith("error: prompts.jsonl: found no prompt with text")
    assert done.err.count("\n") == 1


def test_errors_are_one_line(run: Run, tmp_path: Path) -> None:
    with serving(StandIn()) as url:
        pass  # nothing listens there any more
    for arguments, words in (
        ([url], "does not answer GET /v1/models"),
        (["http://"], "not an address"),
        ([url, "--prompts", "none.jsonl"], "none.jsonl: no such file"),
    ):
        done = run("check", *arguments)
        assert (done.code, done.out) == (1, "")
        assert words in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["host", "--only", "luck"],
        ["host", "--only", "speed,settings"],
        ["host", "--only", "acceptance", "--no-expect-speculation"],
        ["host", "--only", ","],
        ["host", "--temperature", "0"],
        ["host", "--samples", "3"],
        ["host", "--profile", "p.yaml"],
        ["host", "--plan", "t.json", "--profile", "p.yaml", "--acceptance", "a.yaml"],
        ["host", "--format", "yaml"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], run: Run) -> None:
    done = run("check", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
