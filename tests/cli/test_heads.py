"""The commands with an EAGLE-3 head as draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SMALL, Outcome
from lookup_pairs import looking_up, lookup_policy
from policies import random_policy
from small_heads import specforge_head

from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.tree import TokenTree

SHORT = ["--max-new-tokens", "12"]


@pytest.fixture
def models_with_head(models: list[str], tmp_path: Path) -> list[str]:
    """Options that name a small target and a head on it."""
    head = specforge_head(tmp_path / "small-head", 500, 2048)
    return [*models[:2], "--draft", str(head)]


def test_from_a_profile_to_a_text(
    run: Callable[..., Outcome], models_with_head: list[str], dataset: Path
) -> None:
    done = run("profile", *models_with_head, *SMALL, "--verifiers", "", "--json")
    assert done.code == 0, done.err
    profile = json.loads(done.out)
    assert profile["draft"]["model"] == "small-head"
    done = run("estimate", *models_with_head, "--dataset", dataset, "--max-new-tokens", 8, "--json")
    assert done.code == 0, done.err
    done = run("estimate", *models_with_head, "--dataset", dataset, "--teacher-forced", "--json")
    assert done.code == 0, done.err
    files = list(Path("profiles").glob("*/*.yaml"))
    latency = next(file for file in files if file.parent.name != "acceptance")
    rates = next(file for file in files if "teacher-forced" not in file.name and file != latency)
    done = run("solve", "--profile", latency, "--acceptance", rates, "--size", 6, "--json")
    assert done.code == 0, done.err
    tree = next(Path("trees").glob("*/*.json"))
    done = run("decode", tree, "--prompt", "def f(x):", *models_with_head, *SHORT, "--compare")
    assert done.code == 0, done.err
    done = run("bench", tree, *models_with_head, "--dataset", dataset, *SHORT, "--json")
    assert done.code == 0, done.err
    assert "there is no draft model" in done.err  # transformers drafts with models only
    results = {row["name"]: row for row in json.loads(done.out)["results"]}
    assert "solved tree (6 nodes)" in results
    assert {row["agreement"] for row in results.values()} == {1.0}


def code(count: int) -> Path:
    """A dataset of so many short functions."""
    path = Path("code.jsonl")
    prompts = [f"def f{number}(x):\n    return x + {number}\n" for number in range(count)]
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return path


def saved(policy: Policy) -> str:
    TokenTree([-1], [0], policy=policy).save("plan.json")
    return "plan.json"


def test_from_a_profile_to_adaptive_plans(
    run: Callable[..., Outcome], models_with_head: list[str]
) -> None:
    pair = models_with_head
    done = run("profile", *pair, *SMALL, "--verifiers", "sequoia", "-o", "p.yaml", "--json")
    assert done.code == 0, done.err
    profile = json.loads(done.out)
    assert profile["draft"]["passes"] == "head"
    assert {"adaptive greedy", "adaptive sequoia"} <= set(profile["overhead"])
    sampling = ["--dataset", code(6), "--max-new-tokens", 16, "--envelope", "3x2x3"]
    for options in ([], ["--temperature", 0.6, "--verifier", "sequoia,topk"]):
        done = run("estimate", *pair, *sampling, *options, "--json")
        assert done.code == 0, done.err
    done = run("estimate", *pair, *sampling, "-o", "a.yaml")
    assert done.code == 0, done.err
    recording = Recording.load("a.npz")
    assert recording.is_of_head
    assert str(recording.envelope) == "3x2x3"
    done = run("solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json")
    assert done.code == 0, done.err
    assert "adaptive chain" in done.out
    assert "adaptive tree" in done.out
    options = ["--profile", "p.yaml", "--dataset", code(8), "--max-new-tokens", 8]
    done = run("calibrate", "t.json", *pair, *options, "--temperature", 0, "--json")
    assert done.code == 0, done.err
    (part,) = json.loads(done.out)["calibration"]
    assert sum(checked.get("adaptive", False) for checked in part["trees"]) == 2


@pytest.mark.parametrize("draft", ["head", "lookup+head"])
def test_adaptive_plans_decode_as_plain_decoding(
    draft: str, run: Callable[..., Outcome], models_with_head: list[str], dataset: Path
) -> None:
    pair, policy = models_with_head, random_policy((3, 2, 2), 1)
    if draft == "lookup+head":
        pair = [*pair[:3], f"lookup+{pair[3]}"]
        policy = looking_up(policy, lookup_policy(), 0.2)
    exact = ["--dtype", "float64", "--max-new-tokens", 24, "--ignore-eos"]
    asked = ["--prompt", "def f(x):\n    return x\n" * 3, "--stats", "s.jsonl", "--compare"]
    done = run("decode", saved(policy), *pair, *exact, *asked, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["compare"]["results"][1]["agreement"] == 1
    assert sum(document["sizes"].values()) == document["steps"]
    assert run("show", "s.jsonl").code == 0
    raced = ["--dataset", dataset, "--methods", "plain,tree", "--repeats", 1, "--limit", 2]
    done = run("bench", "plan.json", *pair, *raced, *exact[:4], "--json")
    assert done.code == 0, done.err
    assert [row["agreement"] for row in json.loads(done.out)["results"]] == [1, 1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--envelope", "2x3x2"], "slots: found 3, expected at most 2"),
        (["--envelope", "2x2x2", "--temperature", 1, "--verifier", "traversal"], "estimate with"),
    ],
)
def test_what_cannot_be_recorded(
    options: list[object],
    complaint: str,
    run: Callable[..., Outcome],
    models_with_head: list[str],
    dataset: Path,
) -> None:
    done = run("estimate", *models_with_head, "--dataset", dataset, *options)
    assert done.code in (1, 2)
    assert complaint in " ".join(done.err.split())


@pytest.mark.usefixtures("few_tokens")
def test_a_head_is_compared_with_a_model(
    run: Callable[..., Outcome], models: list[str], models_with_head: list[str], dataset: Path
) -> None:
    drafts = ["--draft", models[3], "--draft", models_with_head[3]]
    arguments = ["--target", models[1], *drafts, "--dataset", dataset, "--max-new-tokens", 8]
    timed = ["--contexts", "16,64", "--tokens", "1,2,4,8", "--repeats", 5, "--limit", 2]
    done = run("compare-drafts", *arguments, *timed, "--json")
    assert done.code == 0, done.err
    drafts = {entry["draft"] for entry in json.loads(done.out)["drafts"]}
    assert drafts == {"small-draft", "small-head"}
