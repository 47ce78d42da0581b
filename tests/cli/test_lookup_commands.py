"""`--draft lookup` on the command line, from the profile to the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome
from lookup_pairs import lookup_policy
from test_chat import TEMPLATE

from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

FAST = ["--contexts", "16,64", "--tokens", "1,2,4,8", "--repeats", 5]


@pytest.fixture
def lookup(models: list[str]) -> list[str]:
    return [*models[:2], "--draft", "lookup"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("def f0(x):\n    return x\n" * 3)
    return folder


def saved(path: str = "plan.json", **metadata: Any) -> str:
    TokenTree([-1], [0], {"draft": "lookup", **metadata}, lookup_policy()).save(path)
    return path


def test_from_the_profile_to_the_text(
    run: Callable[..., Outcome], lookup: list[str], dataset: Path, corpus: Path
) -> None:
    common = [*lookup, "--corpus", corpus]
    done = run("profile", *common, *FAST, "-o", "p.yaml", "--json")
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
    options = ["--prompt", "def f(x):\n    return x\n", "--max-new-tokens", 40, "--ignore-eos"]
    options += ["--dtype", "float64", "--compare", "--repeats", 1, "--temperature", temperature]
    options += ["--verifier", "topk"] if temperature else []
    done = run("decode", saved(), *models[:2], *options, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert sum(document["sizes"].values()) == document["steps"]
    _, grown = document["compare"]["results"]
    assert grown["nodes"] == 16
    if temperature == 0:
        assert grown["agreement"] == 1


def test_completions_and_conversations_are_those_of_plain_decoding(
    run: Callable[..., Outcome],
    models: list[str],
    lookup: list[str],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(models[1]) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    shapes.chain(1).save("plain.json")
    texts: list[Any] = []
    turns: list[Any] = []
    for plan in (saved(), "plain.json"):
        options = [*lookup, "--dtype", "float64", "--max-new-tokens", 16]
        done = run("complete", dataset, plan, *options, "-o", f"{plan}.jsonl")
        assert done.code == 0, done.err
        lines = Path(f"{plan}.jsonl").read_text().splitlines()
        texts.append([json.loads(line)["completion"] for line in lines])
        monkeypatch.setattr("sys.stdin", StringIO("first?\nfirst?\nthird?\n"))
        done = run("chat", plan, *options, "--ignore-eos", "--json")
        assert done.code == 0, done.err
        turns.append([turn["tokens"] for turn in json.loads(done.out)["turns"]])
    assert texts[0] == texts[1]
    assert turns[0] == turns[1]


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
    arguments = ["--target", models[1], "--dataset", dataset, "--max-new-tokens", 16]
    arguments += ["--contexts", "16,64", "--repeats", 5]
    done = run("compare-drafts", *drafts, *arguments, "--json")
    assert done.code == 0, done.err
    by_name = {entry["draft"]: entry for entry in json.loads(done.out)["drafts"]}
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
    done = run(*options, *models[:2])
    assert done.code == 1
    (line,) = [text for text in done.err.splitlines() if text.startswith("error: ")]
    assert complaint in " ".join(done.err.split()), line
