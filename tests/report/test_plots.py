from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.report import plots
from sequoia_opt.report.plots import Results, figures, save

SETTINGS = {
    "format": plots.FORMAT,
    "version": 1,
    "target": "big",
    "draft": "small",
    "dataset": "code",
    "dtype": "float32",
    "compile": [],
    "max_new_tokens": 64,
    "prompts": 4,
    "hardware": {"name": "a machine"},
}


def row(name: str, nodes: int, tokens: float, speedup: float = 1.0) -> dict[str, Any]:
    return {
        "name": name,
        "nodes": nodes,
        "tokens_per_step": tokens,
        "tokens_low": tokens - 0.2,
        "tokens_high": tokens + 0.3,
        "tokens_per_second": 100 * speedup,
        "speedup": speedup,
        "speedup_low": speedup - 0.1,
        "speedup_high": speedup + 0.1,
    }


def kept(
    path: Path, temperature: float | str, rows: list[dict[str, Any]], **others: Any
) -> Results:
    document = SETTINGS | {"temperature": temperature, "results": rows} | others
    path.write_text(json.dumps(document))
    return Results.load(path)


RACE = [row("plain", 1, 1.0), row("generate", 0, 1.0, 0.6), row("solved tree (9 nodes)", 9, 4, 2.5)]


def test_a_temperature_in_quotes_is_the_number(tmp_path: Path) -> None:
    found = kept(tmp_path / "race.json", "1e-1", RACE)
    assert found.temperature == 0.1
    [figure] = plots.figures([found]).values()
    assert "temperature 0.1" in figure.axes[0].get_title(loc="left")


def test_speeds_are_bars_with_their_intervals(tmp_path: Path) -> None:
    figures = plots.figures([kept(tmp_path / "race.json", 0, RACE)])
    assert list(figures) == ["race"]
    axes = figures["race"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][::-1] == [r["name"] for r in RACE]
    assert [bar.get_width() for bar in axes.patches][::-1] == [1.0, 0.6, 2.5]
    ends = axes.collections[0].get_segments()[0]  # of the last method, which stands at the bottom
    assert sorted(end[0] for end in ends) == pytest.approx([2.4, 2.6])
    assert "2.50 ×  (250 tokens/s)" in {text.get_text() for text in axes.texts}
    assert "4 prompts of 64 new tokens" in axes.get_title(loc="left")


def test_temperatures_are_drawn_together(tmp_path: Path) -> None:
    warm = [row("plain", 1, 1.0), row("solved tree (6 nodes)", 6, 3, 1.8)]
    warm += [row("most tokens (64 nodes)", 64, 6.0), row("most tokens (128 nodes)", 128, 7.0)]
    files = [kept(tmp_path / "warm.json", 0.6, warm), kept(tmp_path / "cold.json", 0, RACE)]
    figures = plots.figures(files)
    assert set(figures) == {"warm", "cold", "big--small--code--temperatures"}
    axes = figures["big--small--code--temperatures"].axes[0]
    drawn = {line.get_label(): line for line in axes.containers}
    assert set(drawn) == {"solved tree", "most tokens (64 nodes)", "most tokens (128 nodes)"}
    assert drawn["solved tree"].lines[0].get_xdata().tolist() == [0, 0.6]
    assert drawn["solved tree"].lines[0].get_ydata().tolist() == [4, 3]


def test_what_differs_is_not_set_side_by_side(tmp_path: Path) -> None:
    files = [
        kept(tmp_path / "a.json", 0, RACE),
        kept(tmp_path / "b.json", 0.6, RACE, dtype="bfloat16"),
    ]
    with pytest.raises(SequoiaError, match="differ in dtype"):
        plots.figures(files)


def test_files_of_one_name_are_not_drawn_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [kept(tmp_path / part / "a.json", 0, RACE) for part in (".", "other")]
    with pytest.raises(SequoiaError, match="a: files of one name"):
        plots.figures(files)


def test_sizes_are_a_line_for_each_shape(tmp_path: Path) -> None:
    rows = [row("plain", 1, 1.0), row("tree (4 nodes)", 4, 2.5), row("chain (4 nodes)", 4, 2.4)]
    rows.append(row("tree (16 nodes)", 16, 4.0))
    figures = plots.figures([kept(tmp_path / "sizes.json", 0.6, rows, sizes=[4, 16])])
    drawn = {line.get_label(): line.lines[0] for line in figures["sizes"].axes[0].containers}
    assert drawn["tree"].get_xdata().tolist() == [4, 16]
    assert drawn["tree"].get_ydata().tolist() == [2.5, 4.0]
    assert drawn["chain"].get_ydata().tolist() == [2.4]


def test_predictions_are_set_against_measurements(tmp_path: Path) -> None:
    trees = [{"speedup": {"predicted": 2.0, "measured": 2.1}}]
    part = {"temperature": 0.6, "trees": trees}
    document = kept(tmp_path / "c.json", 0, RACE, calibration=[part])
    axes = plots.figures([document])["c"].axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 2.1]]


@pytest.mark.parametrize("form", plots.FORMATS)
def test_the_same_figure_is_the_same_file(tmp_path: Path, form: str) -> None:
    contents = []
    for name in ("a", "b"):
        figure = plots.figures([kept(tmp_path / "race.json", 0, RACE)])["race"]
        path = tmp_path / f"{name}.{form}"
        plots.save(figure, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) > 1000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"results": []}, "results: expected a list"),
        ({"results": [{"name": "plain"}]}, "results: expected a list"),
        ({"calibration": 3}, "calibration: expected a list"),
        ({"results": [{**RACE[0], "nodes": "one"}]}, "results: expected a list"),
        ({"calibration": [{"temperature": 0, "trees": [{"speedup": 2}]}]}, "calibration: expected"),
        ({"hardware": "fast"}, "hardware: expected"),
        ({"temperature": "warm"}, "temperature: "),
        ({"format": "other"}, "format: found 'other'"),
        ({"target": None}, None),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str | None
) -> None:
    document = SETTINGS | {"temperature": 0, "results": RACE} | changed
    if message is None:
        message = "target: "
        del document["target"]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SequoiaError, match=message):
        Results.load(path)


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    results = kept(tmp_path / "r.json", 0, [row("plain", 1, 1.0), row("$\\frac$", 3, 2.0)])
    for figure in figures([results]).values():
        save(figure, tmp_path / "r.svg")
    assert "$\\frac$" in (tmp_path / "r.svg").read_text()


def test_results_of_a_single_prompt_have_no_interval(tmp_path: Path) -> None:
    alone = row("plain", 1, 1.0) | {"speedup_low": None, "speedup_high": None}
    results = kept(tmp_path / "r.json", 0, [alone])
    save(figures([results])["r"], tmp_path / "r.svg")
