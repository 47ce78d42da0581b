from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from command_line import Outcome

from sequoia_opt.plan import shapes
from sequoia_opt.repository import paths


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
