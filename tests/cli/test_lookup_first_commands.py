"""`--draft lookup+MODEL` on the command line, from the profile to the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, refusal
from lookup_pairs import looking_up, lookup_policy
from plans_of_lookups import (
    FAST_PROFILE,
    REPETITIVE,
    assert_texts_are_those_of_plain_decoding,
    compared_with_plain_decoding,
    drafts_compared,
)
from policies import random_policy

from sequoia_opt import demo
from sequoia_opt.engine.drafters import FINGERPRINT
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.tree import TokenTree


@pytest.fixture
def both(models: list[str]) -> list[str]:
    return [*models[:2], "--draft", f"lookup+{models[3]}"]


def code(count: int) -> Path:
    """A dataset of so many short functions, each written twice."""
    functions = [f"def f{n}(x):\n    return x + {n}\n" for n in range(count)]
    path = Path("code.jsonl")
    path.write_text("\n".join(json.dumps({"prompt": text * 2}) for text in functions))
    return path


def saved(path: str = "plan.json", **metadata: Any) -> str:
    policy = looking_up(random_policy((4, 3, 2), 1), lookup_policy(), 0.2)
    TokenTree([-1], [0], metadata, policy).save(path)
    return path


def test_from_the_profile_to_the_text(
    run: Callable[..., Outcome], both: list[str], models: list[str]
) -> None:
    done = run("profile", *both, *FAST_PROFILE, "-o", "p.yaml", "--json")
    assert done.code == 0, done.err
    profile = json.loads(done.out)
    assert profile["draft"]["model"] == "lookup+small-draft"
    assert profile["draft"]["fingerprint"].startswith(f"{FINGERPRINT}+")
    assert profile["draft"]["path"] == str(Path(models[3]).resolve())
    assert {"greedy", "adaptive greedy", "lookup greedy", "lookup sequoia"} <= set(
        profile["overhead"]
    )
    sampling = ["--dataset", code(6), "--max-new-tokens", 40]
    done = run("estimate", *both, *sampling, "-o", "a.yaml", "--json")
    assert done.code == 0, done.err
    recording = Recording.load("a.npz")
    assert recording.lookup is not None
    assert recording.lookup.levels == 16
    assert len(recording.lookup.ranks) == len(recording.ranks)
    assert (recording.lookup.ranks > 0).any()
    solve = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json"]
    done = run(*solve)
    assert done.code == 0, done.err
    assert "adaptive lookup + model" in done.out
    assert run("show", "t.json").code == 0
    assert run("report", "t.json", "-o", "r.html").code == 0
    done = run("decode", "t.json", *both, "--prompt", "def", "--max-new-tokens", 12, "--json")
    assert done.code == 0, done.err


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_decode_compares_with_plain_decoding(
    temperature: float, run: Callable[..., Outcome], both: list[str]
) -> None:
    plan = saved(draft="lookup+small-draft", target="small")
    prompt = ["--prompt", REPETITIVE * 3]
    document = compared_with_plain_decoding(run, plan, both, temperature, *prompt)
    assert 0 <= document["looked_up"] <= document["steps"]
    assert document["looked_up"] or temperature
    assert run("show", plan).out.count("lookup: ") > 3


def test_completions_and_conversations_are_those_of_plain_decoding(
    run: Callable[..., Outcome],
    both: list[str],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_texts_are_those_of_plain_decoding(run, saved(), both, dataset, monkeypatch)


def test_bench_races_it_with_static_trees_of_its_model(
    run: Callable[..., Outcome], both: list[str], dataset: Path
) -> None:
    options = ["--dataset", dataset, "--limit", 2, "--max-new-tokens", 12, "--repeats", 1]
    options += ["--methods", "plain,tree", "--dtype", "float64"]
    done = run("bench", saved(), *both, *options, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [result["agreement"] for result in document["results"]] == [1, 1]
    assert document["draft"] == "lookup+small-draft"


def test_compare_drafts_ranks_it_beside_its_parts(
    run: Callable[..., Outcome], models: list[str], dataset: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "notes.txt"
    corpus.write_text(REPETITIVE * 3)
    drafts = ["--draft", models[3], "--draft", f"lookup+{models[3]}", "--corpus", corpus]
    by_name = drafts_compared(run, drafts, models, dataset)
    assert set(by_name) == {"small-draft", "lookup+small-draft"}
    assert len({entry["parameters"] for entry in by_name.values()}) == 1
    (rates,) = Path("profiles/acceptance").glob("*--lookup+small-draft--*.yaml")
    assert "notes.txt" in rates.read_text()


@pytest.mark.parametrize("draft", ["lookup", "lookup+"])
def test_calibrate_races_every_kind_of_plan(
    draft: str, run: Callable[..., Outcome], both: list[str], models: list[str]
) -> None:
    pair = both if draft == "lookup+" else [*models[:2], "--draft", draft]
    assert run("profile", *pair, *FAST_PROFILE, "--verifiers", "", "-o", "p.yaml").code == 0
    plan = saved()
    if draft == "lookup":
        TokenTree([-1], [0], {"draft": draft}, lookup_policy()).save(plan)
    options = ["--profile", "p.yaml", "--dataset", code(8), "--max-new-tokens", 32]
    done = run("calibrate", plan, *pair, *options, "--temperature", 0, "--json")
    assert done.code == 0, done.err
    (part,) = json.loads(done.out)["calibration"]
    names = [checked["name"] for checked in part["trees"]]
    assert names[0] == "chosen"
    adaptive = sum(checked.get("adaptive", False) for checked in part["trees"])
    assert adaptive == (2 if draft == "lookup" else 4), names
    assert all(checked["speedup"]["measured"] > 0 for checked in part["trees"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["decode", "plan.json", "--draft", "small-draft"], "use --draft lookup+small-draft"),
        (["decode", "other.json", "--draft", "lookup"], "was solved for draft lookup+x"),
        (["estimate", "--draft", "lookup+lookup"], "expected one lookup before a draft model"),
        (["estimate", "--draft", "lookup+"], "found lookup+, expected a draft model behind it"),
        (["estimate", "--corpus", "plan.json", "--draft", "x"], "expected lookup"),
    ],
)
def test_what_is_refused(
    options: list[object], complaint: str, run: Callable[..., Outcome], models: list[str]
) -> None:
    saved()
    saved("other.json", draft="lookup+x")
    assert complaint in refusal(run(*options, *models[:2]))


def test_the_bundled_draft_stands_behind_the_plus(run: Callable[..., Outcome]) -> None:
    name = f"lookup+{demo.DRAFT_NAME}"
    plan = saved(target=demo.TARGET_NAME, draft=name)
    options = ["--prompt", REPETITIVE * 3, "--max-new-tokens", 24, "--json"]
    for draft in ([], ["--draft", "lookup+"], ["--draft", name]):
        done = run("decode", plan, *draft, *options)
        assert done.code == 0, done.err
        assert json.loads(done.out)["looked_up"]
