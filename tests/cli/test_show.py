from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.export import export
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import paths


def test_show_draws_each_kind_of_file(run: Callable[..., Outcome]) -> None:
    shown = {
        "together": run("show"),
        "milliseconds of a forward": run("show", paths.bundled_profile()),
        "95 % interval": run("show", paths.bundled_acceptance()),
    }
    for wanted, outcome in shown.items():
        assert outcome.code == 0, outcome.err
        assert wanted in outcome.out


def test_show_says_what_a_tree_is_worth(run: Callable[..., Outcome]) -> None:
    path = paths.bundled_tree(0.0)
    tree = TokenTree.load(path)
    document = json.loads(run("show", path, "--json").out)
    rates = Acceptance.load(paths.input_of(tree, "acceptance"))
    assert document["reached"] == pytest.approx(rates.node_values(tree).tolist())
    assert sum(document["shares"]) == pytest.approx(1)


def test_show_takes_trees_of_other_engines(run: Callable[..., Outcome]) -> None:
    Path("medusa.txt").write_text(export(shapes.k_ary(2, 2), "medusa")[0])
    alone = run("show", "medusa.txt")
    assert alone.code == 0, alone.err
    assert "--acceptance names one" in alone.err
    assert "reached" not in alone.out
    Path("medusa.json").write_text("[[0], [1], [0, 0]]")
    assert "4 nodes, 2 deep" in run("show", "medusa.json").out
    valued = run("show", "medusa.txt", "--acceptance", paths.bundled_acceptance())
    assert "reached" in valued.out


def test_show_refuses_what_it_cannot_draw(run: Callable[..., Outcome]) -> None:
    Path("notes.md").write_text("# Notes: none\n")
    for arguments, code in (
        (["notes.md"], 1),
        (["none.json"], 1),
        ([paths.bundled_profile(), "--acceptance", "a.yaml"], 2),
        (["--limit", "0"], 2),
    ):
        failed = run("show", *arguments)
        assert (failed.code, failed.out, failed.err.count("\n")) == (code, "", 1)


def test_report_writes_a_page(run: Callable[..., Outcome]) -> None:
    done = run("report", "-o", "page.html")
    assert done.code == 0, done.err
    page = Path("page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "demo-target with demo-draft" in page
    failed = run("report", "--results", paths.bundled_profile(), "-o", "other.html")
    assert failed.code == 1
    assert not Path("other.html").exists()


def test_report_needs_what_the_tree_was_solved_from(run: Callable[..., Outcome]) -> None:
    shapes.k_ary(2, 2).save("own.json")
    failed = run("report", "own.json")
    assert (failed.code, failed.err.count("\n")) == (1, 1)
    assert "name it with --profile" in failed.err
    named = ["--profile", paths.bundled_profile(), "--acceptance", paths.bundled_acceptance()]
    done = run("report", "own.json", *named)
    assert done.code == 0, done.err
    assert Path("own.html").exists()


def test_inputs_may_lie_beside_the_tree(run: Callable[..., Outcome]) -> None:
    shutil.copy(paths.bundled_profile(), "p.yaml")
    shutil.copy(paths.bundled_acceptance(), "a.yaml")
    solved = run("solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json")
    assert solved.code == 0, solved.err
    done = run("report", "t.json", "-o", "t.html", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"written": ["t.html"]}
    assert "reached" in run("show", "t.json").out
