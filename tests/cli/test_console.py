"""What is printed, in a terminal and in a pipe."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sequoia_opt.cli import console
from sequoia_opt.measure.bench import Result
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.solver import solve

NAMES = ["plain", "transformers assisted generation", "solved tree, traversal (128 nodes)"]
RESULTS = [
    Result(name, 0, 4.51, 4.0, 5.0, 210.6, 4.75, 21.0, 2.18, 1.91, 2.59, 1.0, 0.63, 8)
    for name in NAMES
]


def test_names_in_a_pipe_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.race_table(RESULTS, "a title", greedy=True)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "…" not in printed


def test_names_in_a_narrow_terminal_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over as many lines as they take."""
    terminal = Console(force_terminal=True, width=80, record=True)
    monkeypatch.setattr(console, "out", terminal)
    console.race_table(RESULTS, "a title", greedy=True)
    printed = terminal.export_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    end = next(line.index("tokens/step") for line in printed.splitlines() if "tokens/step" in line)
    first_column = "".join("".join(line[:end].split()) for line in printed.splitlines())
    assert all("".join(name.split()) in first_column for name in NAMES)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is said to be."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_is_told_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """After ten seconds, then twice as many, then every minute; a part begins anew."""
    advance = console._lines_now_and_then("profiling")
    for second in range(301):
        clock[0] = float(second)
        advance(second, 400)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "profiling: 10 of 400, about 6 min left"
    assert [line.split()[1] for line in told] == ["10", "30", "70", "130", "190", "250"]
    for second in range(301, 431):
        clock[0] = float(second)
        advance(second - 301, 130)  # another part, of as many seconds
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "profiling: 9 of 130, about 2 min left",
        "profiling: 69 of 130, about 1 min left",
        "profiling: 129 of 130, about 1 s left",
    ]


def test_a_pipe_is_told_of_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, and not of what does not."""
    with console.waiting("loading"):
        pass
    assert capsys.readouterr().err == ""
    said = threading.Event()
    monkeypatch.setattr(console, "FIRST_WORD", 0.0)
    monkeypatch.setattr(console, "note", lambda message: (said.set(), print(message)))
    for context in (console.waiting("loading"), console.progress("loading")):
        said.clear()
        with context:
            assert said.wait(60)
        assert capsys.readouterr().out == "loading …\n"


def plan(ms_of_eight: float, **options: Any) -> Any:
    """On a machine where eight tokens take so long, and one takes ten milliseconds."""
    curve = Curve(1, 128, [1, 2, 8], *(np.array([10.0, 11.0, ms_of_eight]) for _ in range(3)))
    small = Curve(1, 128, [1, 2, 8], *(np.array([1.0, 1.0, 1.0]) for _ in range(3)))
    profile = LatencyProfile(
        {"name": "m"},
        {},
        {},
        ModelLatency("big", "", [curve]),
        ModelLatency("small", "", [small]),
        {"greedy": Overhead(0.0, 0.0, 0.0)},
    )
    return solve(profile, Acceptance(np.array([0.3, 0.1])), context=128, **options)


def test_a_tree_that_does_not_pay_is_not_called_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.plan_summary(plan(80.0, size=5))
    printed = capsys.readouterr().out
    assert printed.startswith("It does not pay. Best of what was asked for: 5 nodes")
    assert "Best tree" not in printed
    console.plan_summary(plan(12.0, size=5))
    assert capsys.readouterr().out.startswith("Best tree: 5 nodes")


def test_a_tree_of_one_node_is_called_plain_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    for found in (plan(80.0, max_size=1), plan(800.0, max_width=1, shape="chain")):
        console.plan_summary(found)
    assert capsys.readouterr().out.count(": plain decoding.") >= 1
