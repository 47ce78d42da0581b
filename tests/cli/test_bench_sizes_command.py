from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Outcome

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance


def test_sizes_are_compared_and_plotted(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    Acceptance(np.array([0.6, 0.2, 0.1])).save("rates.yaml")
    shapes.k_ary(2, 2).save("k.json")
    arguments = ["bench-sizes", "k.json", *models, "--dataset", dataset, "--max-new-tokens", 8]
    arguments += ["--repeats", 1, "--sizes", "6,3,3", "--acceptance", "rates.yaml"]
    shown = run(*arguments, "-o", "kept/sizes.json", "--format", "md")
    assert shown.code == 0, shown.err
    document = json.loads(Path("kept/sizes.json").read_text())
    assert document["sizes"] == [3, 6]
    nodes = {result["name"]: result["nodes"] for result in document["results"]}
    assert next(iter(nodes)) == "plain"
    assert nodes["plain"] == 1
    assert {name: n for name, n in nodes.items() if name.startswith("tree")} == {
        "tree (3 nodes)": 3,
        "tree (6 nodes)": 6,
    }
    assert "k sequences (5 nodes)" in nodes
    assert "tree (6 nodes)" in shown.out
    done = run("plot", "kept/sizes.json", "-o", "drawn", "--format", "png")
    assert done.code == 0
    assert Path("drawn/sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "expected svg, png, pdf" in run("plot", "kept/sizes.json", "--format", "gif").err
    assert "no such file" in run("plot", "missing.json").err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sizes", "1"], "expected from 2 to 1024 nodes"),
        (["--sizes", "8,2000"], "expected from 2 to 1024 nodes"),
        (["--sizes", "a"], "expected whole numbers"),
        (["-o", "kept.csv"], "expected a .json file"),
        (["--random-weights"], "add --synthetic-acceptance"),
        (["--methods", "plain"], "No such option: --methods"),
        (["--chain", "3"], "No such option: --chain"),
        (["--profile", "p.yaml"], "No such option: --profile"),
    ],
)
def test_usage_errors(run: Callable[..., Outcome], options: list[str], complaint: str) -> None:
    done = run("bench-sizes", *options)
    assert done.code == 2
    assert complaint in done.err


def test_the_tree_needs_acceptance(run: Callable[..., Outcome], models: list[str]) -> None:
    shapes.k_ary(2, 2).save("k.json")
    done = run("bench-sizes", "k.json", *models)
    assert done.code == 1
    assert "name it with --acceptance" in done.err


def test_the_old_spelling_names_the_command(run: Callable[..., Outcome]) -> None:
    done = run("bench", "t.json", "--sizes", "8,32", "--limit", "2")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "sequoia-opt bench-sizes t.json --sizes 8,32 --limit 2" in done.err
