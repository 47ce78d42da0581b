from __future__ import annotations

from pathlib import Path

import pytest
from bench_data import RACE, loaded, row

from sequoia_opt.errors import SequoiaError
from sequoia_opt.report import bench_figures
from sequoia_opt.report.bench_figures import figures, save


def test_a_temperature_in_quotes_is_the_number(tmp_path: Path) -> None:
    results = loaded(tmp_path / "race.json", "1e-1", RACE)
    assert results.temperature == 0.1
    [figure] = bench_figures.figures([results]).values()
    assert "temperature 0.1" in figure.axes[0].get_title(loc="left")


def test_speeds_are_bars_with_their_intervals(tmp_path: Path) -> None:
    figures = bench_figures.figures([loaded(tmp_path / "race.json", 0, RACE)])
    assert list(figures) == ["race"]
    axes = figures["race"].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][::-1] == [r["name"] for r in RACE]
    assert [bar.get_width() for bar in axes.patches][::-1] == [1.0, 0.6, 2.5]
    ends = axes.collections[0].get_segments()[0]  # of the last method, at the bottom
    assert sorted(end[0] for end in ends) == pytest.approx([2.4, 2.6])
    assert "2.50x  (250 tokens/s)" in {text.get_text() for text in axes.texts}
    assert "4 prompts, 64 new tokens each" in axes.get_title(loc="left")


def test_files_of_several_temperatures_share_a_figure(tmp_path: Path) -> None:
    warm = [row("plain", 1, 1.0), row("solved tree (6 nodes)", 6, 3, 1.8)]
    warm += [row("most tokens (64 nodes)", 64, 6.0), row("most tokens (128 nodes)", 128, 7.0)]
    files = [loaded(tmp_path / "warm.json", 0.6, warm), loaded(tmp_path / "cold.json", 0, RACE)]
    figures = bench_figures.figures(files)
    assert set(figures) == {"warm", "cold", "big--small--code--temperatures"}
    axes = figures["big--small--code--temperatures"].axes[0]
    drawn = {line.get_label(): line for line in axes.containers}
    assert set(drawn) == {"solved tree", "most tokens (64 nodes)", "most tokens (128 nodes)"}
    assert drawn["solved tree"].lines[0].get_xdata().tolist() == [0, 0.6]
    assert drawn["solved tree"].lines[0].get_ydata().tolist() == [4, 3]


def test_files_of_other_settings_do_not_share_a_figure(tmp_path: Path) -> None:
    files = [
        loaded(tmp_path / "a.json", 0, RACE),
        loaded(tmp_path / "b.json", 0.6, RACE, dtype="bfloat16"),
    ]
    with pytest.raises(SequoiaError, match="differ in dtype and cannot share a figure"):
        bench_figures.figures(files)


def test_files_of_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [loaded(tmp_path / part / "a.json", 0, RACE) for part in (".", "other")]
    with pytest.raises(SequoiaError, match=r"a: two files have this name.*draw them separately"):
        bench_figures.figures(files)


def test_sizes_are_drawn_as_a_line_for_each_shape(tmp_path: Path) -> None:
    rows = [row("plain", 1, 1.0), row("tree (4 nodes)", 4, 2.5), row("chain (4 nodes)", 4, 2.4)]
    rows.append(row("tree (16 nodes)", 16, 4.0))
    figures = bench_figures.figures([loaded(tmp_path / "sizes.json", 0.6, rows, sizes=[4, 16])])
    drawn = {line.get_label(): line.lines[0] for line in figures["sizes"].axes[0].containers}
    assert drawn["tree"].get_xdata().tolist() == [4, 16]
    assert drawn["tree"].get_ydata().tolist() == [2.5, 4.0]
    assert drawn["chain"].get_ydata().tolist() == [2.4]


def test_measurements_are_drawn_against_predictions(tmp_path: Path) -> None:
    trees = [{"speedup": {"predicted": 2.0, "measured": 2.1}}]
    part = {"temperature": 0.6, "trees": trees}
    document = loaded(tmp_path / "c.json", 0, RACE, calibration=[part])
    axes = bench_figures.figures([document])["c"].axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[2.0, 2.1]]


@pytest.mark.parametrize("form", bench_figures.FORMATS)
def test_the_same_figure_gives_the_same_file(tmp_path: Path, form: str) -> None:
    contents = []
    for name in ("a", "b"):
        figure = bench_figures.figures([loaded(tmp_path / "race.json", 0, RACE)])["race"]
        path = tmp_path / f"{name}.{form}"
        bench_figures.save(figure, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) > 1000


def test_a_dollar_in_a_name_is_drawn_as_one(tmp_path: Path) -> None:
    results = loaded(tmp_path / "r.json", 0, [row("plain", 1, 1.0), row("$\\frac$", 3, 2.0)])
    for figure in figures([results]).values():
        save(figure, tmp_path / "r.svg")
    assert "$\\frac$" in (tmp_path / "r.svg").read_text()


def test_results_of_a_single_prompt_have_no_interval(tmp_path: Path) -> None:
    alone = row("plain", 1, 1.0) | {"speedup_low": None, "speedup_high": None}
    results = loaded(tmp_path / "r.json", 0, [alone])
    save(figures([results])["r"], tmp_path / "r.svg")
