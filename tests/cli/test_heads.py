"""The commands with an EAGLE-3 head as draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SMALL, Outcome
from small_heads import specforge_head

SHORT = ["--max-new-tokens", "12"]


@pytest.fixture
def models_with_head(models: list[str], tmp_path: Path) -> list[str]:
    """Options that name a small target and a head on it."""
    head = specforge_head(tmp_path / "small-head", 500, 2048)
    return [*models[:2], "--draft", str(head)]


def test_from_a_profile_to_a_text(
    run: Callable[..., Outcome], models_with_head: list[str], dataset: Path
) -> None:
    done = run("profile", *models_with_head, *SMALL, "--json")
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


def test_adaptive_plans_are_refused(
    run: Callable[..., Outcome], models_with_head: list[str], dataset: Path
) -> None:
    arguments = [*models_with_head, "--dataset", dataset, "--max-new-tokens", 8]
    done = run("estimate", *arguments, "--envelope", "2x2x2")
    assert done.code == 1
    assert "drafts fixed trees only" in " ".join(done.err.split())


@pytest.mark.usefixtures("few_tokens")
def test_a_head_is_compared_with_a_model(
    run: Callable[..., Outcome], models: list[str], models_with_head: list[str], dataset: Path
) -> None:
    drafts = ["--draft", models[3], "--draft", models_with_head[3]]
    arguments = ["--target", models[1], *drafts, "--dataset", dataset, "--max-new-tokens", 8]
    timed = ["--contexts", "16,64", "--repeats", 5, "--limit", 2]
    done = run("compare-drafts", *arguments, *timed, "--json")
    assert done.code == 0, done.err
    drafts = {entry["draft"] for entry in json.loads(done.out)["drafts"]}
    assert drafts == {"small-draft", "small-head"}
