from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Outcome

from sequoia_opt.files.documents import plain
from sequoia_opt.plan import shapes
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import paths


def test_solving_again_gives_the_same_tree(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    run("profile", *models, *SMALL, "-o", "p.yaml")
    run("estimate", *models, "--dataset", dataset, "--max-new-tokens", 8, "-o", "a.yaml")
    arguments = ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--json", "-o", "t.json"]
    assert run(*arguments).out == run(*arguments).out


def test_solve_compares_with_other_trees(run: Callable[..., Outcome]) -> None:
    shapes.k_ary(2, 2).save("solved.json")
    Path("chain[v2].txt").write_text("[[0], [1], [0, 0]]")
    against = ["--against", "solved.json", "--against", "chain[v2].txt", "--compare"]
    done = run("solve", *against, "-o", "t.json")
    assert done.code == 0, done.err
    alone = run("solve", "-o", "alone.json")
    assert alone.code == 0
    assert TokenTree.load("t.json") == TokenTree.load("alone.json")
    assert "solved.json" in done.out
    assert "chain[v2].txt" in done.out
    document = json.loads(run("solve", *against, "-o", "t.json", "--json").out)
    assert document["against"]["solved.json"]["size"] == 7
    assert document["compare"]["4"]["chain[v2].txt"]["size"] == 4
    assert "solved.json" not in document["compare"]["4"]
    assert document["compare"]["8"]["solved.json"]["size"] == 7


def test_solve_repeats_what_its_profile_says_of_its_times(run: Callable[..., Outcome]) -> None:
    """In a terminal's words and with --json, whose document stays alone."""
    profile = LatencyProfile.load(paths.bundled_profile())
    profile.disturbed = "batch 1: 2 of 7 rounds; the time was up, and these times are thin"
    curve = profile.target.curves[0]
    curve.high_ms[1] = 2 * curve.median_ms[1]
    profile.save("p.yaml")
    for options in ([], ["--json"]):
        done = run("solve", "--profile", "p.yaml", "-o", "t.json", *options)
        assert done.code == 0
        assert "note: the profile's times: disturbed while it was measured: batch 1: 2" in done.err
        assert f"target at {curve.context}: " in done.err
    assert json.loads(done.out)["size"] >= 1


def test_a_profile_that_yaml_wrote_with_aliases_is_solved(run: Callable[..., Outcome]) -> None:
    document = LatencyProfile.load(paths.bundled_profile()).document()
    tokens = document["target"]["latency"][0]["tokens"]
    for role in ("target", "draft"):
        for curve in document[role]["latency"]:
            curve["tokens"] = tokens
    Path("p.yaml").write_text(yaml.safe_dump(plain(document), sort_keys=False))
    shared = plain(document)
    for role in ("target", "draft"):
        for curve in shared[role]["latency"]:
            curve["tokens"] = shared["target"]["latency"][0]["tokens"]
    Path("q.yaml").write_text(yaml.safe_dump(shared))
    assert "*id001" in Path("q.yaml").read_text()
    trees = []
    for name in ("p", "q"):
        done = run("solve", "--profile", f"{name}.yaml", "-o", f"{name}.json")
        assert done.code == 0, done.err
        trees.append(TokenTree.load(f"{name}.json"))
    assert trees[0] == trees[1]


@pytest.mark.parametrize(
    "command",
    [
        ["solve"],
        ["profile"],
        ["estimate"],
        ["report", "t.json"],
        ["plot", "b.json"],
        ["import", "c.txt"],
        ["complete", "d.jsonl", "t.json"],
        ["bench", "t.json"],
    ],
)
def test_no_file_is_called_dash(run: Callable[..., Outcome], command: list[str]) -> None:
    shapes.chain(3).save("t.json")
    Path("c.txt").write_text("[[0]]")
    Path("d.jsonl").write_text('{"prompt": "x"}\n')
    shutil.copy(
        next((Path(__file__).parents[2] / "benchmarks").glob("*/humaneval/*.json")), "b.json"
    )
    done = run(*command, "-o", "-")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "found -" in done.err
    assert not Path("-").exists()


def test_an_export_to_dash_goes_to_standard_output(run: Callable[..., Outcome]) -> None:
    shapes.chain(3).save("t.json")
    done = run("export", "t.json", "--to", "eagle", "-o", "-")
    assert (done.code, done.out) == (0, "[[0], [0, 0]]\n")
    assert not Path("-").exists()
