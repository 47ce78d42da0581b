from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt.plan.tree import TokenTree


def test_a_sweep_shows_the_best_tree_of_each_value(run: Callable[..., Outcome]) -> None:
    assert run("solve", "-o", "t.json").code == 0
    chosen = TokenTree.load("t.json")
    swept = run("sweep")
    assert swept.code == 0, swept.err
    assert f"chosen tree: {chosen.size} nodes, {chosen.depth} deep" in swept.out
    assert "best tree by context length" in swept.out
    assert list(Path().iterdir()) == [Path("t.json")]  # a sweep writes nothing


def test_a_sweeps_document_has_the_tree_and_the_points(run: Callable[..., Outcome]) -> None:
    assert run("solve", "--max-size", 4, "-o", "t.json").code == 0
    document = json.loads(run("sweep", "batch", "--max-size", 4, "--json").out)
    assert document["axis"] == "batch"
    assert document["tree"]["parents"] == json.loads(Path("t.json").read_text())["parents"]
    assert document["points"][0]["value"] == 1
    assert all(point["size"] <= 4 for point in document["points"])


@pytest.mark.parametrize("arguments", [["size"], ["--context", "many"], ["-o", "t.json"]])
def test_what_cannot_be_swept_is_a_usage_error(
    run: Callable[..., Outcome], arguments: list[str]
) -> None:
    done = run("sweep", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
