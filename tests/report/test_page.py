"""The page in a browser: headless Chromium, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_data import NASTY, measured, plan_of

from sequoia_opt.plan import shapes
from sequoia_opt.report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
# Hovers over a value of each chart, but a heatmap's, which cannot be named this way.
HOVER = """
for (const chart of charts) {
  const shows = ({ hoverinfo, type }) => hoverinfo !== "skip" && type !== "heatmap";
  Plotly.Fx.hover(chart, [{ curveNumber: chart.data.findIndex(shows), pointNumber: 0 }]);
}
"""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = folder / "report.html"
    path.write_text(page(shapes.k_ary(2, 2), plan_of(shapes.k_ary(2, 2)), measured(folder)))
    return path


class Elements(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_no_other_file_and_escapes_names(report: Path) -> None:
    text = report.read_text()
    elements = Elements(text)
    [policy] = (meta for meta in elements.of("meta") if "http-equiv" in meta)
    assert str(policy["content"]).startswith("default-src 'none'; ")
    assert not elements.of("link")
    assert not elements.of("img")
    assert all("src" not in attributes for attributes in elements.of("script"))
    assert not elements.of("b")
    # One script for each figure, plotly's, and the page's own.
    assert len(elements.of("script")) == len(elements.of("section")) + 2
    assert NASTY not in text
    assert page(shapes.k_ary(2, 2), plan_of(shapes.k_ary(2, 2))) == page(
        shapes.k_ary(2, 2), plan_of(shapes.k_ary(2, 2))
    )


def test_the_prediction_is_shown_beside_the_measurement(tmp_path: Path) -> None:
    """If `bench` measured the page's own tree."""
    tree, parents = shapes.k_ary(2, 2), {"parents": [-1, 0, 0, 1, 1, 2, 2]}
    race, _ = measured(tmp_path)
    text = page(tree, plan_of(tree), [race])
    assert "The diamond is the prediction for this tree" not in text
    race.document["trees"] = {race.rows[1]["name"]: parents | {"ranks": [0, 1, 2, 1, 2, 1, 2]}}
    text = page(tree, plan_of(tree), [race])
    assert "The diamond is the prediction for this tree" in text
    assert "predicted %{x:.2f}x" in text


def test_a_tree_of_one_node_has_a_page() -> None:
    """It says whether a larger tree is predicted to be faster."""
    plan = plan_of(shapes.chain(1))
    faster = f"predicted to run at {plan.fastest.speedup[0]:.2f}x"
    assert faster in page(shapes.chain(1), plan)
    plan = replace(plan, fastest=plan.given[0])
    assert "plain decoding. No tree is predicted to be faster" in page(shapes.chain(1), plan)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_every_chart(report: Path, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--enable-logging=stderr", "--virtual-time-budget=20000",
            "--dump-dom", report.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    # A request to the network, which the page's policy forbids, would be logged too.
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert messages == []
    drawn = Elements(done.stdout)
    [body] = drawn.of("body")
    figures = re.findall(
        r'<script type="application/json" id="figure-[^"]+">(.*?)</script>', report.read_text()
    )
    assert body["data-drawn"] == str(len(figures)) == "8"
    charts = done.stdout.split('class="chart')[1:]
    for figure, chart in zip(figures, charts, strict=True):
        data = json.loads(figure)["data"]
        assert chart.count('class="main-svg"') >= 1
        points = sum(len(trace["x"]) for trace in data if trace["type"] == "bar")
        assert chart.count('<g class="point"') == points
        lines = [trace for trace in data if trace["type"] == "scatter"]
        assert len(re.findall(r'class="trace scatter', chart)) == len(lines)
        heats = [trace for trace in data if trace["type"] == "heatmap"]
        assert chart.count('class="hm"') == len(heats)
    # No chart is wider than the window, whose width is at least 500.
    widths = [
        float(found) for found in re.findall(r'class="main-svg"[^>]*width="([\d.]+)"', done.stdout)
    ]
    assert widths
    assert max(widths) <= max(width, 500)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_in_dark_mode_text_is_light_and_values_show_on_hover(report: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    drawn = "document.body.dataset.drawn = charts.length;"
    text = report.read_text()
    assert text.count(drawn) == 1
    path = tmp_path / "hovered.html"
    path.write_text(text.replace(drawn, HOVER + drawn))
    done = subprocess.run(
        [
            CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,900",
            "--blink-settings=preferredColorScheme=0", "--virtual-time-budget=20000",
            "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    charts = done.stdout.split('class="chart')[1:]
    assert charts
    for chart in charts:
        assert 'class="hovertext' in chart
        assert "fill: rgb(230, 232, 235)" in chart  # the page's ink in dark mode
        assert "fill: rgb(31, 35, 40)" not in chart


def test_the_page_says_if_a_tree_does_not_pay_and_which_timings_are_doubtful() -> None:
    tree = shapes.chain(9)
    plan = plan_of(tree)
    text = page(tree, plan)
    assert "It does not pay" not in text
    assert "not to be trusted" not in text
    slow = replace(plan.given[0], step_ms=1000 * plan.given[0].step_ms)
    plan.profile.disturbed = "other processes took 75% of the processors"
    plan.profile.target.curves[0].high_ms[2] *= 9
    text = page(tree, replace(plan, given=[slow]))
    assert "It does not pay: plain decoding is predicted to be faster. 9 nodes" in text
    assert "disturbed while it was measured: other processes took 75%" in text
    assert "not to be trusted, with intervals wider than 50%" in text
