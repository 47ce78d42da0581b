from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_latency import make_profile

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import solve_all


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two machines, two acceptance files of their pair and one of another pair."""
    for slug, slope in (("fast", 0.01), ("slow", 1.0)):
        profile = make_profile(slope=slope)
        profile.hardware["slug"] = slug
        profile.save(tmp_path / "profiles" / slug / "target--draft--float32.yaml")
    for dataset, draft in (("code", "draft"), ("talk", "draft"), ("code", "other")):
        Acceptance(
            np.array([0.6, 0.2]), target="target", draft=draft, dataset=dataset, verifier="greedy"
        ).save(tmp_path / "profiles" / "acceptance" / f"target--{draft}--{dataset}.yaml")
    return tmp_path


def test_every_profile_is_solved_with_every_acceptance_of_its_pair(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    trees = dict(solve_all.solve_all(root, {}, lambda *counts: steps.append(counts)))
    assert [path.relative_to(root).as_posix() for path in trees] == [
        f"trees/{slug}/target--draft--float32--{dataset}-greedy-T0.json"
        for slug in ("fast", "slow")
        for dataset in ("code", "talk")
    ]
    assert steps == [(i, 4) for i in range(1, 5)]
    sizes = [tree.size for tree in trees.values()]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    assert [tree.document() for tree in trees.values()] == [
        tree.document() for _, tree in solve_all.solve_all(root, {})
    ]


def test_a_difference_is_named_in_one_line(root: Path) -> None:
    path, tree = next(iter(solve_all.solve_all(root, {})))
    assert "no such file" in str(solve_all.difference(path, tree))
    tree.save(path)
    assert solve_all.difference(path, tree) is None
    document = json.loads(path.read_text())
    for change, complaint in (
        ({"context": 17.0}, "context: found 17.0, expected"),
        ({"predicted": document["predicted"] | {"speedup": 9.0}}, "predicted.speedup: found 9.0"),
        ({"extra": 1}, "extra: not expected"),
    ):
        path.write_text(json.dumps(document | change))
        line = solve_all.difference(path, tree)
        assert line is not None
        assert line.startswith(f"{path}: {complaint}")
        assert "\n" not in line
    # The program's version and rounding on another processor do not count.
    document["provenance"] |= {"sequoia_opt": "0.0.1", "solver": "dynamic programme"}
    document["expected_tokens"] *= 1 + 1e-6
    path.write_text(json.dumps(document))
    assert solve_all.difference(path, tree) is None
    TokenTree([-1, 0], [0, 1]).save(path)
    assert "found 2 nodes, depth 1, expected" in str(solve_all.difference(path, tree))


def test_a_repository_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SequoiaError, match="no profile has an acceptance of the same pair"):
        list(solve_all.solve_all(tmp_path, {}))


def test_inputs_that_cannot_be_solved_are_named(root: Path) -> None:
    with pytest.raises(SequoiaError, match=r"fast/target--draft--float32.yaml with .*code.yaml: "):
        list(solve_all.solve_all(root, {"size": 999}))


def test_trees_whose_inputs_no_longer_exist_are_listed(root: Path) -> None:
    for path, tree in solve_all.solve_all(root, {}):
        tree.save(path)
    solved = [path for path, _ in solve_all.solve_all(root, {})]
    TokenTree([-1, 0], [0, 1]).save(root / "trees" / "imported" / "by-hand.json")
    (root / "trees" / "imported" / "other.json").write_text('{"a": 1}')
    shutil.copy(solved[0], solved[0].with_name("chosen-by-hand.json"))
    assert solve_all.left_over(root, solved) == []
    (root / "profiles" / "slow" / "target--draft--float32.yaml").unlink()
    solved = [path for path, _ in solve_all.solve_all(root, {})]
    lines = solve_all.left_over(root, solved)
    assert len(lines) == 2
    assert all("/trees/slow/" in line and "the profile that it" in line for line in lines)
    broken = root / "trees" / "imported" / "by-hand.json"
    broken.write_text(broken.read_text().replace("[-1, 0]", "[-1, 7]"))
    assert any(
        "by-hand.json: tree: parents[1]" in line for line in solve_all.left_over(root, solved)
    )
