"""The command `tune`, with a stand-in for a server that runs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openvino_stand_in
import pytest
from command_line import Outcome, write
from llama_server_stand_in import StandIn, serving

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.round_costs import RoundCosts
from sequoia_opt.plan.solver import solve

FAST = RoundCosts(10.0, (1, 8), np.array([11.5, 19.0]), 0.8)
SLOW = RoundCosts(10.0, (1, 8), np.array([25.0, 120.0]), 11.0)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with serving(StandIn(FAST)) as stand_in:
        yield stand_in


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"def f{i}(x):\n"}) + "\n" for i in range(6)))
    return ["tune", "llama.cpp", "--prompts", str(path), "--max-new-tokens", "64"]


def test_it_prints_the_measurements_the_race_and_the_flags(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    done = run(*arguments, "--url", server.url)
    assert done.code == 0, done.err
    assert re.search(r"steps that accept at least 1, 2, 3 … guesses: \d+%, \d+%", done.out)
    assert "a step: 10.0 ms plain, 11.5 ms with 1" in done.out
    assert re.search(r"plain +1\.00", done.out)
    assert re.search(r"draft, 3 guesses, the default +\d", done.out)
    fastest = re.search(r"fastest: draft, (\d+) guesses?(?:, p-min ([\d.]+))?", done.out)
    assert fastest is not None
    assert done.out.splitlines()[-1] == (
        "-md DRAFT.gguf --spec-type draft-simple --spec-draft-n-max "
        f"{fastest[1]} --spec-draft-n-min 0 --spec-draft-p-min {fastest[2] or 0}"
    )


def test_json_has_everything(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    found = json.loads(run(*arguments, "--url", server.url, "--json").out)
    assert found["pays"]
    assert found["prompts"] == 6
    assert found["plain_ms"] == pytest.approx(10.0, rel=0.01)
    assert found["results"][0]["setting"]["kind"] == "none"
    speedups = [prediction["speedup"] for prediction in found["predictions"]]
    assert speedups == sorted(speedups, reverse=True)
    best = max(found["results"], key=lambda result: result["speedup"])
    assert best["setting"] == found["setting"]
    assert 1 < best["simultaneous_low"] < best["speedup_low"]
    assert best["speedup_high"] < best["simultaneous_high"]
    assert best["predicted"]["speedup"] == pytest.approx(best["speedup"], rel=0.02)


def test_csv_and_markdown(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    rows = list(
        csv.DictReader(io.StringIO(run(*arguments, "--url", server.url, "--format", "csv").out))
    )
    assert rows[0]["name"] == "plain"
    assert "| plain |" in run(*arguments, "--url", server.url, "--format", "md").out


def test_where_speculation_does_not_pay_it_says_so(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    server.costs = SLOW
    done = run(*arguments, "--url", server.url)
    assert "speculation does not pay: no setting is faster beyond doubt; leave it off" in done.out
    assert done.out.splitlines()[-1] == "--spec-type none"


def test_a_server_that_keeps_its_settings_is_predicted(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    server.takes_settings, server.guesses = False, 6
    done = run(*arguments, "--url", server.url)
    assert done.code == 0, done.err
    assert "the server takes no settings with a request" in done.err
    assert len(re.findall(r"guess(?:es)?: at least [\d.]+x plain decoding", done.out)) == 6
    assert "fastest by prediction: draft, " in done.out
    assert "--spec-draft-n-max" in done.out.splitlines()[-1]
    rows = run(*arguments, "--url", server.url, "--format", "csv").out.splitlines()
    assert len(rows) == 7


def test_what_it_saves_solve_reads(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    found = json.loads(run(*arguments, "--url", server.url, "--save", "kept", "--json").out)
    profile = LatencyProfile.load("kept/profile.yaml")
    acceptance = Acceptance.load("kept/acceptance.yaml")
    plan = solve(profile, acceptance, shape="chain")
    # The chain of fixed length that `tune` predicts to be the fastest of those that were timed.
    timed = [p for p in found["predictions"] if not p["threshold"] and p["guesses"] <= 8]
    assert plan.choice.tree.size - 1 in {p["guesses"] for p in timed[:2]}
    assert plan.choice.speedup[0] == pytest.approx(timed[0]["speedup"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: the server ended, or does not"),
        (["--url", "http://a:b"], "http://a:b: not an address (Port could not be cast to integer"),
        (["--model", "big.safetensors"], "big.safetensors: llama.cpp runs .gguf files; convert"),
        (["--model", "none.gguf"], "none.gguf: no such file"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    run: Callable[..., Outcome], arguments: list[str], options: list[str], message: str
) -> None:
    done = run(*arguments, *options)
    assert done.code == 1
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["vllm"], "found 'vllm', expected llama.cpp"),
        (["--url", "http://a:1", "--model", "b.gguf"], "found models or settings too"),
        (["--url", "http://a:1", "--threads", "2"], "found models or settings too"),
    ],
)
def test_usage_errors(run: Callable[..., Outcome], options: list[str], message: str) -> None:
    done = run("tune", *options)
    assert done.code == 2
    assert message in done.err


def test_a_file_without_prompts_is_refused(run: Callable[..., Outcome], server: StandIn) -> None:
    done = run("tune", "--url", server.url, "--prompts", write("none.jsonl", ""))
    assert (done.code, done.err) == (1, "error: none.jsonl: the dataset has no documents\n")


def test_prompts_that_are_too_long_are_refused(
    run: Callable[..., Outcome], server: StandIn
) -> None:
    path = write("long.jsonl", json.dumps({"prompt": "a" * 600}) + "\n")
    done = run("tune", "--url", server.url, "--prompts", path)
    assert done.code == 1
    assert "no prompt is usable: " in done.err
    assert "the prompt has 601 tokens" in done.err


def test_new_tokens_that_leave_no_room_for_a_prompt_are_refused(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    """Of a server's 512 positions."""
    done = run(*arguments, "--url", server.url, "--max-new-tokens", 512)
    assert done.code == 1
    assert "error: found 512 new tokens for each prompt, expected fewer than the 512" in done.err


def test_a_gain_that_few_prompts_cannot_prove_is_said(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    path = Path(arguments[arguments.index("--prompts") + 1])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # too few for a proof
    done = run(*arguments, "--url", server.url, "--limit", 2)
    assert done.code == 0, done.err
    assert (
        "no setting is faster beyond doubt; leave speculation off, or raise --limit: " in done.out
    )
    assert re.search(r"draft, .* has \d\.\d\dx plain decoding \(0\.\d\d–", done.out)
    assert done.out.splitlines()[-1] == "--spec-type none"


def test_a_gain_that_few_prompts_cannot_prove_is_proved_on_fresh_ones(
    run: Callable[..., Outcome], server: StandIn, arguments: list[str]
) -> None:
    done = run(*arguments, "--url", server.url, "--limit", 2)
    assert done.code == 0, done.err
    proof = re.search(r"(draft, .*) on 4 fresh prompts: (\S+)x plain decoding \((\S+)–", done.out)
    assert proof is not None
    assert 1 < float(proof[3]) < float(proof[2])
    assert f"fastest: {proof[1]}, " in done.out
    found = json.loads(run(*arguments, "--url", server.url, "--limit", 2, "--json").out)
    assert found["pays"]
    assert found["proof"]["prompts"] == 4


def test_openvino_is_tuned_in_this_process(
    run: Callable[..., Outcome],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    openvino_stand_in.install(monkeypatch)
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    arguments[1] = "openvino"
    models = ["--model", str(tmp_path), "--draft", str(tmp_path)]
    found = json.loads(run(*arguments, *models, "--json", "--minutes", "0.5").out)
    names = [result["name"] for result in found["results"]]
    assert names[:2] == ["plain", "draft, 5 guesses, the default"]
    assert names[-3:] == ["draft, threshold 0.3", "draft, threshold 0.6", "lookup"]
    assert all(result["agreement"] == 1 for result in found["results"])
    assert {prediction["threshold"] for prediction in found["predictions"]} == {0}
    assert found["engine"]["name"] == "openvino"
    assert found["command"].startswith("import openvino_genai")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model: found none, expected one: the bundled draft has no form"),
        (["--model", "m", "--url", "http://127.0.0.1:9"], "--url: found an address"),
        (["--model", "m", "--gpu-layers", "3"], "--gpu-layers: found a setting of llama.cpp"),
    ],
)
def test_what_openvino_does_not_take(
    run: Callable[..., Outcome], options: list[str], message: str
) -> None:
    done = run("tune", "openvino", *options)
    assert done.code == 2
    assert message in done.err
