from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import SMALL, Outcome

from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree


def test_solving_again_gives_the_same_tree(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    run("profile", *models, *SMALL, "-o", "p.yaml")
    run("estimate", *models, "--dataset", dataset, "--max-new-tokens", 8, "-o", "a.yaml")
    arguments = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--json", "-o", "t.json"]
    assert run(*arguments).out == run(*arguments).out


def test_solve_sets_given_trees_beside_and_sweeps(run: Callable[..., Outcome]) -> None:
    shapes.k_ary(2, 2).save("solved.json")
    Path("chain[v2].txt").write_text("[[0], [1], [0, 0]]")
    against = ["--against", "solved.json", "--against", "chain[v2].txt", "--compare"]
    done = run("solve", *against, "--sweep", "context", "-o", "t.json")
    assert done.code == 0, done.err
    alone = run("solve", "-o", "alone.json")
    assert alone.code == 0
    assert TokenTree.load("t.json") == TokenTree.load("alone.json")
    assert "solved.json" in done.out
    assert "chain[v2].txt" in done.out
    assert "best tree by cached tokens" in done.out
    document = json.loads(run("solve", *against, "--sweep", "batch", "-o", "t.json", "--json").out)
    assert document["against"]["solved.json"]["size"] == 7
    assert document["compare"]["4"]["chain[v2].txt"]["size"] == 4
    assert "solved.json" not in document["compare"]["4"]
    assert document["compare"]["8"]["solved.json"]["size"] == 7
    assert document["sweep"]["points"][0]["value"] == 1


def test_all_trees_are_solved_and_checked(run: Callable[..., Outcome], tmp_path: Path) -> None:
    for kind in ("profiles", "trees"):
        shutil.copytree(Path(__file__).parents[2] / kind, tmp_path / kind)
    found = run("solve", "--all", "--json")
    assert found.code == 0, found.err
    trees = json.loads(found.out)["trees"]
    assert len(trees) == len(list((tmp_path / "trees").rglob("*.json")))
    found = run("solve", "--all", "--check")
    assert (found.code, found.out) == (0, "")
    shutil.copy(trees[0], trees[-1])
    found = run("solve", "--all", "--check")
    assert found.code == 1
    assert found.out.startswith(f"{trees[-1]}: ")
    assert found.out.count("\n") == 1


@pytest.mark.parametrize("options", [["--check"], ["--all", "-o", "x.json"]])
def test_all_takes_no_single_files(run: Callable[..., Outcome], options: list[str]) -> None:
    found = run("solve", *options)
    assert (found.code, found.err.count("\n")) == (2, 1)
