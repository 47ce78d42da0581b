"""Every command that decodes, with a plan whose trees grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome
from policies import random_policy
from test_chat import TEMPLATE

from sequoia_opt.plan import shapes
from sequoia_opt.plan.policy import Pause
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree


@pytest.fixture
def plan() -> Path:
    """Its tree without a policy has one node, so that whatever drafts follows the policy."""
    policy = replace(random_policy((3, 2, 2), 1, Pause(2, (2,))), offer=0.0)
    path = Path("plan.json")
    TokenTree(AUTOREGRESSIVE.parents, AUTOREGRESSIVE.ranks, policy=policy).save(path)
    return path


def decode(plan: object, models: list[str], *options: object) -> list[Any]:
    common = ["--prompt", "def", "--max-new-tokens", 24, "--ignore-eos", "--dtype", "float64"]
    return ["decode", plan, *models, *common, *options]


def test_decode_says_how_the_trees_grew(
    run: Callable[..., Outcome], models: list[str], plan: Path
) -> None:
    shapes.chain(1).save("plain.json")
    expected = json.loads(run(*decode("plain.json", models, "--json")).out)
    done = run(*decode(plan, models, "--json"))
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["tokens"] == expected["tokens"]
    assert document["text"] == expected["text"]
    assert "sizes" not in expected
    assert sum(document["sizes"].values()) == document["steps"] > 0
    assert sum(document["levels"].values()) == document["steps"]
    shown = run(*decode(plan, models)).out
    assert "plain decoding" not in shown
    share = 100 * document["sizes"]["1"] / document["steps"]
    assert f"tokens verified: 1 in {share:.0f}%" in " ".join(shown.split())
    assert "levels drafted: " in shown


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_decode_compares_with_plain_decoding(
    temperature: float, run: Callable[..., Outcome], models: list[str], plan: Path
) -> None:
    options = ["--compare", "--repeats", 1, "--temperature", temperature]
    document = json.loads(run(*decode(plan, models, *options, "--json")).out)
    plain, grown = document["compare"]["results"]
    assert (plain["name"], grown["name"]) == ("plain", "tree")
    assert (plain["nodes"], grown["nodes"]) == (1, TokenTree.load(plan).largest_size)
    if temperature == 0:
        assert grown["agreement"] == 1
        assert document["compare"]["divergences"] == []
    done = run(*decode(plan, models, *options))
    assert done.code == 0, done.err
    assert "nothing to compare" not in done.out
    assert ("agree with plain decoding" in done.out) == (temperature == 0)


def test_a_dataset_is_completed(
    run: Callable[..., Outcome], models: list[str], plan: Path, dataset: Path
) -> None:
    shapes.chain(1).save("plain.json")
    lines = {}
    for path in (plan, "plain.json"):
        output = f"{path}.jsonl"
        options = ["--max-new-tokens", 9, "--dtype", "float64", "-o", output]
        done = run("complete", dataset, path, *models, *options)
        assert done.code == 0, done.err
        lines[str(path)] = [json.loads(line) for line in Path(output).read_text().splitlines()]
    grown, plain = ([line["completion"] for line in part] for part in lines.values())
    assert grown == plain
    assert len(grown) == 3


def test_a_conversation_is_held(
    run: Callable[..., Outcome],
    models: list[str],
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in models[1::2]:
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    shapes.chain(1).save("plain.json")
    turns = []
    for path in (plan, "plain.json"):
        monkeypatch.setattr("sys.stdin", StringIO("first?\nsecond?\nthird?\n"))
        options = ["--max-new-tokens", 12, "--ignore-eos", "--dtype", "float64", "--json"]
        done = run("chat", path, *models, *options)
        assert done.code == 0, done.err
        turns.append([turn["tokens"] for turn in json.loads(done.out)["turns"]])
    assert turns[0] == turns[1]


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--stats", "s.jsonl"], 2, "plan.json is an adaptive plan"),
        (["--temperature", "1", "--verifier", "traversal"], 1, "decides on whole paths"),
    ],
)
def test_what_cannot_be_done_with_an_adaptive_plan(
    options: list[str],
    code: int,
    complaint: str,
    run: Callable[..., Outcome],
    models: list[str],
    plan: Path,
) -> None:
    done = run(*decode(plan, models, *options))
    assert done.code == code
    assert complaint in " ".join(done.err.split())
    assert not Path("s.jsonl").exists()
