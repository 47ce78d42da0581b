"""What commands say with a plan that looks guesses up, alone and before a draft model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, add_chat_template

from sequoia_opt.plan import shapes

FAST_PROFILE = ["--contexts", "16,64", "--tokens", "1,2,4,8", "--repeats", 5]
REPETITIVE = "def f(x):\n    return x\n"


def compared_with_plain_decoding(
    run: Callable[..., Outcome],
    plan: object,
    pair: Sequence[object],
    temperature: float,
    *more: object,
) -> dict[str, Any]:
    """What `decode --compare` says of a plan of up to 16 nodes, which is lossless.

    Args:
        pair: options that name the models.
    """
    options = ["--max-new-tokens", 40, "--ignore-eos", "--dtype", "float64"]
    options += ["--compare", "--repeats", 1, "--temperature", temperature]
    done = run("decode", plan, *pair, *options, *more, "--json")
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    assert sum(document["sizes"].values()) == document["steps"]
    _, grown = document["compare"]["results"]
    assert grown["nodes"] == 16
    if temperature == 0:
        assert grown["agreement"] == 1
    return document


def assert_texts_are_those_of_plain_decoding(
    run: Callable[..., Outcome],
    plan: object,
    pair: Sequence[str],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completions of a dataset, and the turns of a conversation that repeats itself."""
    add_chat_template(pair[:2])
    shapes.chain(1).save("plain.json")
    completions: list[Any] = []
    turns: list[Any] = []
    for each_plan in (plan, "plain.json"):
        options = [*pair, "--dtype", "float64", "--max-new-tokens", 16]
        done = run("complete", dataset, each_plan, *options, "-o", f"{each_plan}.jsonl")
        assert done.code == 0, done.err
        lines = Path(f"{each_plan}.jsonl").read_text().splitlines()
        completions.append([json.loads(line)["completion"] for line in lines])
        monkeypatch.setattr("sys.stdin", StringIO("first?\nfirst?\nthird?\n"))
        done = run("chat", each_plan, *options, "--ignore-eos", "--json")
        assert done.code == 0, done.err
        turns.append([turn["tokens"] for turn in json.loads(done.out)["turns"]])
    assert completions[0] == completions[1]
    assert turns[0] == turns[1]


def drafts_compared(
    run: Callable[..., Outcome],
    drafts: Sequence[object],
    models: Sequence[str],
    dataset: Path,
) -> dict[str, Any]:
    """What `compare-drafts` says of each draft, by its name."""
    arguments = ["--target", models[1], "--dataset", dataset, "--max-new-tokens", 16]
    arguments += ["--contexts", "16,64", "--tokens", "1,2,4,8", "--repeats", 5]
    done = run("compare-drafts", *drafts, *arguments, "--json")
    assert done.code == 0, done.err
    return {entry["draft"]: entry for entry in json.loads(done.out)["drafts"]}
