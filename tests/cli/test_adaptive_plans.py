"""Every command that decodes, with a plan whose trees grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, add_chat_template
from policies import random_policy

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
    add_chat_template(models)
    shapes.chain(1).save("plain.json")
    turns = []
    for path in (plan, "plain.json"):
        monkeypatch.setattr("sys.stdin", StringIO("first?\nsecond?\nthird?\n"))
        options = ["--max-new-tokens", 12, "--ignore-eos", "--dtype", "float64", "--json"]
        done = run("chat", path, *models, *options)
        assert done.code == 0, done.err
        turns.append([turn["tokens"] for turn in json.loads(done.out)["turns"]])
    assert turns[0] == turns[1]


def test_statistics_are_shown_beside_what_was_predicted(
    run: Callable[..., Outcome], models: list[str], plan: Path
) -> None:
    origin = {"sizes": {"1": 0.4, "7": 0.6}, "drafted_levels": {"0": 0.4, "3": 0.6}}
    tree = TokenTree.load(plan)
    names = {"target": "small-target", "draft": "small-draft", "temperature": 0.0, "top_p": 1.0}
    metadata = {**names, "replayed_tokens": 1.25, "adaptive": origin}
    TokenTree(tree.parents, tree.ranks, metadata, tree.policy).save(plan)
    decoded = [
        json.loads(run(*decode(plan, models, "--stats", "s.jsonl", "--json", *option)).out)
        for option in ([], ["--prompt", "class"], ["--temperature", 1])
    ]
    steps = [document["steps"] for document in decoded]
    [greedy, warm] = json.loads(run("show", "s.jsonl", "--json").out)["plans"]
    for counted, count in ((greedy, sum(steps[:2])), (warm, steps[2])):
        for name in ("accepted", "sizes", "drafted_levels", "stopped"):
            assert sum(counted[name].values()) == count
        accepted = sum(int(number) * count for number, count in counted["accepted"].items())
        assert sum(counted["guesses"]["accepted"]) == accepted
    assert greedy["sizes"] == {
        size: sum(document["sizes"].get(size, 0) for document in decoded[:2])
        for size in greedy["sizes"]
    }
    assert greedy["predicted"]["sizes"] == origin["sizes"]
    assert "predicted" not in warm  # the plan says nothing of that temperature
    shown = run("show", "s.jsonl")
    assert shown.code == 0, shown.err
    assert f"greedy, temperature 0: 2 texts, {sum(steps[:2])} steps" in shown.out
    assert "tokens per step, predicted: 1.25" in shown.out
    assert "a pause: a plain step" in shown.out
    refused = run("estimate", "--from-stats", "s.jsonl")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "s.jsonl: line 1: is of an adaptive plan" in refused.err


def test_show_leaves_statistics_of_fixed_trees_to_estimate(
    run: Callable[..., Outcome], models: list[str], plan: Path
) -> None:
    shapes.chain(3).save("chain.json")
    assert run(*decode("chain.json", models, "--stats", "s.jsonl")).code == 0
    refused = run("show", "s.jsonl")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "`sequoia-opt estimate --from-stats s.jsonl` makes rates of them" in refused.err
    assert run("show", "s.jsonl", "--acceptance", "a.yaml").code == 2
    assert run(*decode(plan, models, "--stats", "s.jsonl")).code == 0
    shown = run("show", "s.jsonl")
    assert shown.code == 0
    assert "makes rates of 1 text that was decoded with fixed trees" in shown.err


def test_what_decides_on_whole_paths_cannot_decode_an_adaptive_plan(
    run: Callable[..., Outcome], models: list[str], plan: Path
) -> None:
    done = run(*decode(plan, models, "--temperature", "1", "--verifier", "traversal"))
    assert done.code == 1
    assert "decides on whole paths" in " ".join(done.err.split())
