from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from command_line import Outcome

RESULTS = next((Path(__file__).parents[2] / "benchmarks").glob("*/humaneval/T0.json"))


def test_plot_draws_a_figure_of_each_form(run: Callable[..., Outcome]) -> None:
    for form in ("svg", "png", "pdf"):
        done = run("plot", RESULTS, "--format", form, "-o", "drawn", "--json")
        assert done.code == 0, done.err
        paths = [Path(path) for path in json.loads(done.out)["written"]]
        assert {path.suffix for path in paths} == {f".{form}"}
        assert all(path.parent == Path("drawn") and path.stat().st_size for path in paths)


def test_plot_refuses_what_it_cannot_draw(run: Callable[..., Outcome]) -> None:
    for arguments, code in (([], 2), ([RESULTS, "--format", "gif"], 2), (["none.json"], 1)):
        failed = run("plot", *arguments)
        assert (failed.code, failed.out, failed.err.count("\n")) == (code, "", 1)
    assert not Path("figures").exists()
