from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from command_line import Outcome

REPOSITORY = Path(__file__).parents[2]


def test_the_repositorys_trees_follow_from_their_inputs(
    run: Callable[..., Outcome], tmp_path: Path
) -> None:
    for kind in ("profiles", "trees"):
        shutil.copytree(REPOSITORY / kind, tmp_path / kind)
    trees = list((tmp_path / "trees").rglob("*.json"))
    checked = run("solve-all", "--check")
    assert (checked.code, checked.out) == (0, "")
    assert f"all {len(trees)} trees follow from their inputs" in checked.err


def test_trees_are_solved_and_checked(run: Callable[..., Outcome], tmp_path: Path) -> None:
    """Those of one machine and dataset at temperature 0."""
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    shutil.rmtree(tmp_path / "profiles" / "amd-epyc-2-threads")
    for file in (tmp_path / "profiles" / "acceptance").iterdir():
        if "--demo--greedy-T0" not in file.name:
            file.unlink()
    solved = run("solve-all", "--json")
    assert solved.code == 0, solved.err
    trees = json.loads(solved.out)["trees"]
    assert len(trees) == len(list((tmp_path / "trees").rglob("*.json"))) > 1
    checked = run("solve-all", "--check")
    assert (checked.code, checked.out) == (0, "")
    assert f"all {len(trees)} trees follow from their inputs" in checked.err
    shutil.copy(trees[0], trees[-1])
    checked = run("solve-all", "--check")
    assert checked.code == 1
    assert checked.out.startswith(f"{trees[-1]}: ")
    assert checked.out.count("\n") == 1
    assert "`sequoia-opt solve-all` solves them" in checked.err
    document = json.loads(run("solve-all", "--check", "--json").out)
    assert document["trees"] == trees
    assert len(document["different"]) == 1


def test_single_files_are_no_options(run: Callable[..., Outcome]) -> None:
    for option in ("-o", "--profile", "--acceptance", "--against"):
        done = run("solve-all", option, "x.json")
        assert (done.code, done.err.count("\n")) == (2, 1)
