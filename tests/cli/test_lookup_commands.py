"""`--draft lookup` on the command line, from the profile to the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, refusal
from lookup_pairs import lookup_policy
from plans_of_lookups import (
    FAST_PROFILE,
    REPETITIVE,
    assert_texts_are_those_of_plain_decoding,
    compared_with_plain_decoding,
    drafts_compared,
)

from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree


@pytest.fixture
def lookup(models: list[str]) -> list[str]:
    return [*models[:2], "--draft", "lookup"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text(REPETITIVE * 3)
    return folder


def saved(path: str = "plan.json", **metadata: Any) -> str:
    TokenTree([-1], [0], {"draft": "lookup", **metadata}, lookup_policy()).save(path)
    return path


def test_from_the_profile_to_the_text(
    run: Callable[..., Outcome], lookup: list[str], dataset: Path, corpus: Path
) -> None:
    common = [*lookup, "--corpus", corpus]
    done = run("profile", *common, *FAST_PROFILE, "-o", "p.yaml", "--json")
    assert done.code == 0, done.err
    profile = json.loads(done.out)
    assert profile["draft"]["passes"] == "none"
    assert {"greedy", "adaptive greedy", "adaptive topk"} <= set(profile["overhead"])
    assert run("show", "p.yaml").code == 0
    sampling = ["--dataset", dataset, "--max-new-tokens", 24, "--envelope", "4x2x3"]
    done = run("estimate", *common, *sampling, "-o", "a.yaml", "--json")
    assert done.code == 0, done.err
    acceptance = json.loads(done.out)
    assert acceptance["corpus"]["name"] == "notes"
    assert acceptance["draft"] == "lookup"
    done = run("solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["corpus"] == acceptance["corpus"]
    assert run("report", "t.json", "-o", "r.html").code == 0
    options = [*common[:2], "--prompt", "def", "--max-new-tokens", 12, "--json"]
    done = run("decode", "t.json", *options)  # the plan names the lookup, not where its corpus is
    assert (done.code, "name it with --corpus" in done.err) == (1, True)
    assert run("decode", "t.json", *options, "--corpus", corpus).code == 0


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_decode_compares_with_plain_decoding(
    temperature: float, run: Callable[..., Outcome], models: list[str]
) -> None:
    options = ["--prompt", REPETITIVE, *(["--verifier", "topk"] if temperature else [])]
    compared_with_plain_decoding(run, saved(), models[:2], temperature, *options)


def test_completions_and_conversations_are_those_of_plain_decoding(
    run: Callable[..., Outcome],
    lookup: list[str],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert_texts_are_those_of_plain_decoding(run, saved(), lookup, dataset, monkeypatch)


def test_bench_leaves_out_what_needs_a_draft_model(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    options = ["--dataset", dataset, "--limit", 2, "--max-new-tokens", 12, "--repeats", 1]
    done = run("bench", saved(), *models[:2], *options, "--dtype", "float64", "--json")
    assert done.code == 0, done.err
    assert "assisted, assisted-best are left out: there is no draft model" in done.err
    names = [result["name"] for result in json.loads(done.out)["results"]]
    assert names[:2] == ["plain", "transformers generate"]
    assert len(names) == 4


@pytest.mark.usefixtures("few_tokens")
def test_compare_drafts_takes_a_lookup(
    run: Callable[..., Outcome], models: list[str], dataset: Path, corpus: Path
) -> None:
    drafts = ["--draft", models[3], "--draft", "lookup", "--corpus", corpus]
    by_name = drafts_compared(run, drafts, models, dataset)
    assert set(by_name) == {"small-draft", "lookup"}
    assert (by_name["lookup"]["parameters"], by_name["lookup"]["relative_cost"]) == (0, 0)
    assert list(Path("profiles/acceptance").glob("*--lookup--*.npz"))
    assert "goes with --draft lookup" in run("compare-drafts", *drafts[:2], *drafts[4:]).err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["decode", "chain.json", "--draft", "lookup"], "not by static trees"),
        (["decode", "other.json", "--draft", "lookup"], "was solved for draft small"),
        (["decode", "plan.json", "--temperature", 1, "--verifier", "sequoia"], "--verifier topk"),
        (["decode", "plan.json", "--draft", "lookup", "--corpus", "none"], "no such file"),
        (["estimate", "--draft", "lookup", "--temperature", 0.6], "use --verifier topk"),
        (["estimate", "--draft", "lookup", "--teacher-forced"], "own continuations"),
        (["estimate", "--corpus", "plan.json"], "expected lookup"),
    ],
)
def test_what_a_lookup_cannot_do(
    options: list[object], complaint: str, run: Callable[..., Outcome], models: list[str]
) -> None:
    shapes.chain(3).save("chain.json")
    saved()
    saved("other.json", draft="small")
    assert complaint in refusal(run(*options, *models[:2]))
