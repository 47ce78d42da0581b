from __future__ import annotations

import json
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
        "the sum is": run("show"),
        "milliseconds per forward pass": run("show", paths.bundled_profile()),
        "95% interval": run("show", paths.bundled_acceptance()),
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
    assert "name one with --acceptance" in alone.err
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
