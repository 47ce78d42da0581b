from __future__ import annotations

import pytest
from rich.console import Console

from sequoia_opt.cli import calibration_tables, output
from sequoia_opt.measure.calibration import CalibrationPart, CheckedTree, Comparison
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling


def checked(name: str, nodes: int, ratio: Comparison) -> CheckedTree:
    number = Comparison(3.3, 3.0, 2.8, 3.2)
    kinds = [number] * 6
    return CheckedTree(name, shapes.chain(nodes), *kinds, over_chosen=ratio)


PART = CalibrationPart(
    Sampling(),
    [
        checked("chosen", 64, Comparison(1.0, 1.0, 1.0, 1.0)),
        checked("128 nodes, shallow", 128, Comparison(0.9, 1.12, 0.97, 1.34)),
    ],
)
CONCLUSIONS = [
    "tokens/step: off by 10.0% (median), 10.0% at most",
    "step time: off by 10.0% (median), 10.0% at most",
    "speedup: off by 10.0% (median), 10.0% at most",
    "step time by the profile on file: off by 10.0% (median), 10.0% at most",
    "speedup by the profile on file: off by 10.0% (median), 10.0% at most",
    "the fastest tree is 128 nodes, shallow: 1.12x (0.97–1.34) the chosen tree's speed",
]


def test_a_table_fits_into_80_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=80, record=True)
    monkeypatch.setattr(output, "out", terminal)
    monkeypatch.setattr(calibration_tables, "out", terminal)
    calibration_tables.calibration_table(PART, "a title")
    lines = [line.rstrip() for line in terminal.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    row = next(line for line in lines if line.strip().startswith("128 nodes, shallow"))
    assert row.split()[-6:] == [
        "128",
        "3.30/3.00",
        "3.30/3.00",
        "3.30/3.00",
        "1.12x",
        "(0.97–1.34)",
    ]
    assert "predicted/measured; step time in steps of plain decoding" in lines


def test_markdown_has_intervals_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    calibration_tables.calibration_markdown(PART, "a title")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        "| chosen | 64 | 63 | 3.30 | 3.00 (2.80–3.20) | +10.0% | 3.30 | 3.00 (2.80–3.20) | +10.0% "
        "| 3.30 | 3.00 (2.80–3.20) | +10.0% | 1.00x (1.00–1.00) |"
    )
    assert lines[-len(CONCLUSIONS) :] == CONCLUSIONS
    assert len({line.count("|") for line in lines[:4]}) == 1


def test_a_right_choice_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    part = CalibrationPart(Sampling(), PART.trees[:1])
    calibration_tables.calibration_markdown(part, "a title")
    assert capsys.readouterr().out.endswith("the chosen tree is the fastest of these\n")
