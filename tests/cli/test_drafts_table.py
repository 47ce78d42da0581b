from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute_force import random_profile
from rich.console import Console

from sequoia_opt.cli import drafts_table, output
from sequoia_opt.measure.compare_drafts import DraftResult
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve


def result(name: str, parameters: int) -> DraftResult:
    profile = random_profile(np.random.default_rng(0), "monotone", 16)
    rates = Acceptance(np.array([0.6, 0.2]))
    return DraftResult(name, parameters, profile, rates, solve(profile, rates))


def test_the_table_fits_into_80_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=80, record=True)
    monkeypatch.setattr(output, "out", terminal)
    monkeypatch.setattr(drafts_table, "out", terminal)
    drafts = [result("small", 68_000_000), result("a-draft-of-a-long-name-1.5B", 1_540_000_000)]
    drafts_table.drafts_table(drafts)
    lines = [line.rstrip() for line in terminal.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    row = next(line.split() for line in lines if line.split()[:1] == ["small"])
    assert row[1:3] == ["68.0M", "0.60"]
    assert lines[-1] == "cost: time of the draft's forward pass over the target's"


def test_the_fastest_draft_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = result("small", 1), result("tiny", 1)
    drafts_table.fastest_line(first, second, 0.958)
    assert capsys.readouterr().out == (
        "small is predicted to be the fastest: ahead of tiny in 96% of resamplings\n"
    )


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are not markup."""
    named: Any = result("[bold]", 1)
    drafts_table.drafts_table([named])
    assert "[bold]" in capsys.readouterr().out
