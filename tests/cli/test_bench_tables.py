from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from sequoia_opt.cli import bench_tables, output
from sequoia_opt.measure.race import Result
from sequoia_opt.plan import shapes

NAMES = ["plain", "transformers assisted generation", "solved tree, traversal (128 nodes)"]
RESULTS = [
    Result(name, 0, 4.51, 4.0, 5.0, 210.6, 4.75, 21.0, 2.18, 1.91, 2.59, 1.0, 0.63, 8)
    for name in NAMES
]
SETTINGS: dict[str, Any] = {
    "dataset": "demo",
    "prompts": 8,
    "max_new_tokens": 128,
    "temperature": 0.6,
    "top_p": 0.9,
    "verifier": "sequoia",
    "repeats": 3,
    "target": "big",
    "draft": "small",
    "dtype": "float32",
    "compile": ["target"],
    "graphs": False,
    "hardware": {"name": "a machine", "threads": 2},
    "software": {"torch": "2", "transformers": "5"},
}


def test_names_in_a_pipe_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables.race_table(RESULTS, "a title", greedy=True)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "…" not in printed


def test_names_in_a_narrow_terminal_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over as many lines as they take."""
    terminal = Console(force_terminal=True, width=80, record=True)
    monkeypatch.setattr(output, "out", terminal)
    bench_tables.race_table(RESULTS, "a title", greedy=True)
    printed = terminal.export_text()
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    end = next(line.index("tokens") for line in printed.splitlines() if "tokens" in line)
    first_column = "".join("".join(line[:end].split()) for line in printed.splitlines())
    assert all("".join(name.split()) in first_column for name in NAMES)


def test_markdown_has_a_heading_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables.race_markdown(RESULTS[:1], "a title", greedy=True)
    assert capsys.readouterr().out.splitlines() == [
        "| method | tokens/step | tokens/s | ms/token | speedup (95%) | same text | repeated |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| plain | 4.51 | 210.6 | 4.75 | 2.18x (1.91–2.59) | 100% | 63% |",
        "",
        "a title",
    ]


def test_another_baseline_than_plain_decoding_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """And texts that are sampled are not compared."""
    bench_tables.race_markdown(RESULTS[1:], "a title", greedy=False)
    heading = capsys.readouterr().out.splitlines()[0]
    assert "| vs first (95%) | repeated |" in heading


def test_a_single_prompt_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    alone = replace(RESULTS[0], speedup_low=None, speedup_high=None)
    bench_tables.race_markdown([alone], "a title", greedy=True)
    assert "| 2.18x |" in capsys.readouterr().out


def test_the_settings_are_one_line() -> None:
    assert bench_tables.settings_line(SETTINGS) == (
        "demo: 8 prompts, 128 new tokens each, temperature 0.6, top-p 0.9, sequoia, "
        "3 repetitions; big with small, float32, compiled; a machine, 2 threads; "
        "torch 2, transformers 5"
    )
    greedy = {**SETTINGS, "temperature": 0.0, "repeats": 1, "compile": []}
    assert bench_tables.settings_line(greedy).startswith(
        "demo: 8 prompts, 128 new tokens each, temperature 0; big with small, float32; "
    )
    unusual = {
        **greedy,
        "synthetic_acceptance": "rates.yaml",
        "random_weights": True,
        "offload": "disk",
        "world_size": 2,
    }
    assert (
        "float32, acceptance SYNTHETIC from rates.yaml, random weights, layers from disk, "
        "2 processes;"
    ) in bench_tables.settings_line(unusual)


def test_predictions_are_compared_with_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    tree = shapes.chain(3)
    ends = {"tokens_low": 3.9, "tokens_high": 4.4, "speedup_low": 1.8, "speedup_high": 2.2}
    tree.metadata.update(expected_tokens=4.1, predicted={"speedup": 2.0, **ends})
    bench_tables.prediction_lines(RESULTS[0], tree, times=True)
    assert capsys.readouterr().out.splitlines() == [
        "tokens per step: predicted 4.10 (3.90–4.40), measured 4.51 (4.00–5.00), +10.0%",
        "speedup: predicted 2.00x (1.80–2.20), measured 2.18x (1.91–2.59), +9.0%",
    ]
    cut = replace(RESULTS[0], surplus=0.06)
    bench_tables.prediction_lines(cut, tree, times=True)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "speedup: predicted 2.00x (1.80–2.20), measured 2.31x (2.02–2.75), +15.5%",
        "6% of it is lost where the length cuts a text's last step short; longer texts lose less",
    ]
    bench_tables.prediction_lines(RESULTS[0], tree, times=False)
    assert "speedup" not in capsys.readouterr().out


def test_a_prediction_without_intervals_is_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A single prompt has none either."""
    tree = shapes.chain(3)
    tree.metadata.update(expected_tokens=4.1, predicted={"speedup": 2.0})
    alone = replace(RESULTS[0], tokens_low=None, speedup_low=None)
    bench_tables.prediction_lines(alone, tree, times=True)
    assert capsys.readouterr().out.splitlines() == [
        "tokens per step: predicted 4.10, measured 4.51, +10.0%",
        "speedup: predicted 2.00x, measured 2.18x, +9.0%",
    ]
