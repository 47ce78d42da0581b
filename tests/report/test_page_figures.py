from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_force import all_trees
from hypothesis import given
from hypothesis import strategies as st
from page_data import measured, plan_of, rates_of

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import page_figures

TREES = [tree for size in range(1, 7) for tree in all_trees(size)]


@given(st.sampled_from(TREES))
def test_nodes_of_a_level_are_at_least_1_apart(tree: TokenTree) -> None:
    x = page_figures.horizontal_positions(tree)
    assert x[0] == 0
    for level in tree.levels:
        positions = [x[node] for node in level]
        assert all(right - left >= 1 for left, right in pairwise(positions))
    for node, parent in list(enumerate(tree.parents))[1:]:
        siblings = [x[v] for v in range(tree.size) if tree.parents[v] == parent]
        assert min(siblings) <= x[parent] <= max(siblings)
        assert node > parent


def traces(figure: str, kind: str) -> list[dict[str, Any]]:
    return [trace for trace in json.loads(figure)["data"] if trace["type"] == kind]


def test_a_tree_is_drawn_with_all_its_nodes_and_edges() -> None:
    tree = shapes.k_ary(2, 3)
    lines, nodes = traces(page_figures.tree(tree, rates_of().node_values(tree)), "scatter")
    assert len(nodes["x"]) == 15
    assert lines["x"].count(None) == 14
    assert sum(row[3] for row in nodes["customdata"]) == pytest.approx(100)


def test_the_surface_shows_the_plans_speeds(tmp_path: Path) -> None:
    plan = plan_of(shapes.chain(3))
    figure = page_figures.surface(plan)
    [heat] = traces(figure, "heatmap")
    z = np.array(heat["z"], dtype=float)
    assert heat["x"] == list(range(1, plan.speed.shape[1]))
    assert np.nanmax(z) == pytest.approx(
        np.nanmax(plan.speed) * plan.choice.plain_ms[0] / 1000, abs=1e-4
    )
    star = next(t for t in traces(figure, "scatter") if t["name"] == "this tree")
    assert (star["x"], star["y"]) == ([3], [2])


def test_each_candidate_is_named_once_and_this_tree_first() -> None:
    plan = plan_of(shapes.chain(3))
    [bars] = traces(page_figures.candidates(plan), "bar")
    assert bars["y"][0].startswith("this tree, 3 nodes")
    assert len(set(bars["y"])) == len(bars["y"])
    assert any(label.startswith("solver's choice".replace("'", "&#x27;")) for label in bars["y"])
    again = plan_of(plan.choice.tree)
    [bars] = traces(page_figures.candidates(again), "bar")
    assert not any(label.startswith("solver") for label in bars["y"])
    assert bars["x"][0] == pytest.approx(float(plan.choice.speedup[0]))


def test_acceptance_is_drawn_by_rank_with_intervals_and_by_depth() -> None:
    [bars] = traces(page_figures.acceptance(rates_of()), "bar")
    assert bars["y"] == [0.6, 0.2, 0.05]
    assert bars["error_y"]["array"] == pytest.approx([0.05, 0.05, 0.05])
    by_depth = Acceptance(np.array([0.6, 0.2]), by_depth=np.array([[0.6, 0.2], [0.5, 0.1]]))
    first, second = traces(page_figures.acceptance_by_depth(by_depth), "scatter")
    assert (first["y"], second["y"]) == ([0.6, 0.5], [0.2, 0.1])
    assert "error_y" not in traces(page_figures.acceptance(by_depth), "bar")[0]


def test_latency_has_a_curve_and_a_band_for_each_context_length() -> None:
    model = plan_of(shapes.chain(3)).profile.target
    lines = traces(page_figures.latency(model), "scatter")
    assert len(lines) == 2 * len(model.curves)
    assert lines[1]["y"] == model.curves[0].median_ms.tolist()
    assert max(lines[0]["y"]) == model.curves[0].high_ms.max()


def test_bench_results_are_drawn(tmp_path: Path) -> None:
    race, calibration = measured(tmp_path)
    [bars] = traces(page_figures.measured_speeds(race), "bar")
    assert bars["y"] == ["plain", "solved &lt;tree&gt; (9 nodes) "]
    assert bars["error_x"]["array"] == pytest.approx([0.1, 0.2])
    [diamond] = traces(page_figures.measured_speeds(race, {race.rows[1]["name"]: 2.4}), "scatter")
    assert (diamond["x"], diamond["y"]) == ([2.4], bars["y"][1:])
    points = traces(page_figures.calibration(calibration), "scatter")
    assert (points[0]["x"], points[0]["y"]) == ([2.0, 1.5], [2.1, 1.4])
