"""The figures of a plan's page, as plotly's JSON.

Knows what each figure shows. Knows nothing of the page around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report.bench_results import Results, interval_end, is_solved_tree
from sequoia_opt.report.plotly_charts import FIGURE_HEIGHT, empty_figure, speed_bars, to_json
from sequoia_opt.report.style import GREY, HIGHLIGHT, MAIN, colour
from sequoia_opt.types import FloatArray

SCALE = "Viridis"  # told apart without red and green, and in greyscale
SHOWN_RANKS = 16  # of the acceptance by rank
SHOWN_LINES = 4  # ranks of the acceptance by depth
LEVEL_HEIGHT = 64  # pixels between the levels of a tree
LABELLED_NODES = 64  # of a tree that has labels beside its nodes


def tree(drawn: TokenTree, values: FloatArray) -> str:
    """A tree with its root on top.

    Args:
        values: [size], the probability that verification reaches each node.
    """
    import plotly.graph_objects as go

    x = horizontal_positions(drawn)
    y = (-drawn.depths).tolist()
    edges_x: list[float | None] = []
    edges_y: list[float | None] = []
    for node, parent in list(enumerate(drawn.parents))[1:]:
        edges_x += [x[parent], x[node], None]
        edges_y += [float(y[parent]), float(y[node]), None]
    shares = 100 * values / values.sum()
    figure = empty_figure(LEVEL_HEIGHT * (drawn.depth + 1) + 60)
    figure.add_trace(
        go.Scatter(
            x=edges_x,
            y=edges_y,
            mode="lines",
            hoverinfo="skip",
            line={"color": GREY, "width": 1},
        )
    )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers+text" if drawn.size <= LABELLED_NODES else "markers",
            text=[str(rank) if rank else "root" for rank in drawn.ranks],
            textposition="middle right",
            marker={
                "size": (8 + 14 * np.sqrt(values)).tolist(),
                "color": values.tolist(),
                "colorscale": SCALE,
                "reversescale": True,
                "cmin": 0,
                "cmax": 1,
                "line": {"color": GREY, "width": 1},
            },
            customdata=np.stack([drawn.ranks, drawn.depths, values, shares], axis=1).tolist(),
            hovertemplate="rank %{customdata[0]}, depth %{customdata[1]}<br>"
            "reached with probability %{customdata[2]:.3f}<br>"
            "%{customdata[3]:.1f}% of the expected tokens<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)
    widest = max(abs(position) for position in x)
    figure.update_xaxes(visible=False, range=[-widest - 1, widest + 1])
    figure.update_yaxes(visible=False, range=[-drawn.depth - 0.5, 0.5])
    return to_json(figure)


def horizontal_positions(drawn: TokenTree) -> list[float]:
    """The x coordinate of each node: leaves at distances of 1, parents above the middle of their
    first and last child, the root at 0."""
    children = drawn.children
    depth_first, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        depth_first.append(node)
        waiting += reversed(children[node])
    x = [0.0] * drawn.size
    leaves = [node for node in depth_first if not children[node]]
    for index, leaf in enumerate(leaves):
        x[leaf] = float(index)
    for node in reversed(depth_first):
        if children[node]:
            x[node] = (x[children[node][0]] + x[children[node][-1]]) / 2
    return [position - x[0] for position in x]


def surface(plan: Plan) -> str:
    """The best speed at each size and depth, with this tree and the next best."""
    import plotly.graph_objects as go

    speedups = plan.speed * float(plan.choice.plain_ms[0]) / 1000
    depths, sizes = (np.arange(count) for count in speedups.shape)
    has_tree = np.isfinite(speedups[:, 1:]).any(axis=1)
    rows = np.round(speedups[has_tree][:, 1:], 4).tolist()
    # JSON has no NaN.
    grid = [[None if np.isnan(speed) else speed for speed in row] for row in rows]
    figure = empty_figure(FIGURE_HEIGHT + 60)
    figure.add_trace(
        go.Heatmap(
            x=sizes[1:].tolist(),
            y=depths[has_tree].tolist(),
            z=grid,
            colorscale=SCALE,
            hovertemplate="%{x} nodes, depth %{y}<br>%{z:.2f}x plain decoding<extra></extra>",
            colorbar={"title": {"text": "speed"}, "thickness": 12},
        )
    )
    [this] = plan.given
    next_best = [candidate for _, candidate in _others(plan) if candidate.tree.size > 1]
    for name, candidates_shown, symbol, marker_colour in (
        ("next best", next_best, "circle-open", "#ffffff"),
        (this.name, [this], "star", HIGHLIGHT),
    ):
        figure.add_trace(
            go.Scatter(
                x=[candidate.tree.size for candidate in candidates_shown],
                y=[candidate.tree.depth for candidate in candidates_shown],
                mode="markers",
                name=name,
                marker={
                    "symbol": symbol,
                    "size": 12,
                    "color": marker_colour,
                    "line": {"width": 2},
                },
                customdata=[float(candidate.speedup[0]) for candidate in candidates_shown],
                hovertemplate="%{x} nodes, depth %{y}<br>%{customdata:.2f}x plain decoding"
                f"<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="nodes")
    figure.update_yaxes(title="depth")
    figure.update_layout(showlegend=False)
    return to_json(figure)


def candidates(plan: Plan) -> str:
    """Predicted speeds of this tree, the next best trees and the shapes of other tools."""
    [this] = plan.given
    rows = [(this.name, this), *_others(plan)]
    rows += [(candidate.name, candidate) for candidate in plan.baselines]
    return speed_bars(
        labels=[f"{escape(name)}, {candidate.tree.size} nodes" for name, candidate in rows],
        speeds=[float(candidate.speedup[0]) for _, candidate in rows],
        intervals=[interval(candidate.speedup) for _, candidate in rows],
        highlighted=[candidate is this for _, candidate in rows],
    )


def _others(plan: Plan) -> list[tuple[str, Candidate]]:
    """The solver's best candidates besides this tree, fastest first, each with its name."""
    names: dict[TokenTree, tuple[str, Candidate]] = {}
    for candidate in plan.runners_up:
        names[candidate.tree] = "next best", candidate
    names[plan.fastest.tree] = "fastest", plan.fastest
    names[plan.choice.tree] = "solver's choice", plan.choice
    names.pop(plan.given[0].tree, None)
    return sorted(names.values(), key=lambda row: -float(row[1].speedup[0]))


def measured_speeds(results: Results, predicted: Mapping[str, float] | None = None) -> str:
    """Measured speeds of each method.

    Args:
        predicted: predicted speeds by method, for those that have one.
    """
    rows = results.rows
    names = [str(row["name"]) for row in rows]
    return speed_bars(
        labels=[escape(name) for name in names],
        speeds=[float(row["speedup"]) for row in rows],
        intervals=[
            (
                interval_end(row, "speedup_low", "speedup"),
                interval_end(row, "speedup_high", "speedup"),
            )
            for row in rows
        ],
        highlighted=[is_solved_tree(row) for row in rows],
        predicted=[(predicted or {}).get(name) for name in names],
    )


def latency(model: ModelLatency) -> str:
    """A model's latency curves, one for each batch and context length."""
    import plotly.graph_objects as go

    figure = empty_figure(FIGURE_HEIGHT)
    has_batches = any(curve.batch > 1 for curve in model.curves)
    for index, curve in enumerate(model.curves):
        name = f"context {curve.context}"
        if has_batches:
            name += f", batch {curve.batch}"
        band = [*curve.high_ms.tolist(), *curve.low_ms.tolist()[::-1]]
        figure.add_trace(
            go.Scatter(
                x=[*curve.tokens, *curve.tokens[::-1]],
                y=band,
                fill="toself",
                mode="lines",
                line={"width": 0, "color": colour(index)},
                opacity=0.25,
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=curve.tokens,
                y=curve.median_ms.tolist(),
                name=name,
                legendgroup=name,
                mode="lines+markers",
                marker={"size": 4, "color": colour(index)},
                line={"color": colour(index), "width": 1.5},
                customdata=np.stack([curve.low_ms, curve.high_ms], axis=1).tolist(),
                hovertemplate="%{x} tokens: %{y:.3g} ms (%{customdata[0]:.3g}–"
                f"%{{customdata[1]:.3g}})<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="tokens per forward pass", rangemode="tozero")
    figure.update_yaxes(title="ms", rangemode="tozero")
    return to_json(figure)


def acceptance(rates: Acceptance) -> str:
    """Acceptance by rank, with intervals."""
    import plotly.graph_objects as go

    shown = rates.rates[:SHOWN_RANKS]
    errors: dict[str, Any] = {}
    if rates.low is not None and rates.high is not None:
        errors["error_y"] = {
            "type": "data",
            "array": np.maximum(0, rates.high[:SHOWN_RANKS] - shown).tolist(),
            "arrayminus": np.maximum(0, shown - rates.low[:SHOWN_RANKS]).tolist(),
            "thickness": 1.5,
            "color": GREY,
        }
    figure = empty_figure(FIGURE_HEIGHT)
    figure.add_trace(
        go.Bar(
            x=list(range(1, len(shown) + 1)),
            y=shown.tolist(),
            marker={"color": MAIN},
            hovertemplate="rank %{x}: %{y:.4f}<extra></extra>",
            **errors,
        )
    )
    figure.update_xaxes(title="rank", dtick=1)
    figure.update_yaxes(title="acceptance", rangemode="tozero")
    return to_json(figure)


def acceptance_by_depth(rates: Acceptance) -> str:
    """Acceptance of the first ranks by depth; `rates` must have it."""
    import plotly.graph_objects as go

    assert rates.by_depth is not None
    figure = empty_figure(FIGURE_HEIGHT)
    for index in range(min(SHOWN_LINES, rates.width)):
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(rates.by_depth) + 1)),
                y=rates.by_depth[:, index].tolist(),
                name=f"rank {index + 1}",
                mode="lines+markers",
                line={"color": colour(index)},
                hovertemplate=f"depth %{{x}}: %{{y:.4f}}<extra>rank {index + 1}</extra>",
            )
        )
    figure.update_xaxes(title="depth", dtick=1)
    figure.update_yaxes(title="acceptance", rangemode="tozero")
    return to_json(figure)


def calibration(results: Results) -> str:
    """Measured against predicted speeds, a point for each tree."""
    import plotly.graph_objects as go

    figure = empty_figure(FIGURE_HEIGHT + 80)
    largest = 0.0
    for index, part in enumerate(results.document["calibration"]):
        predicted = [float(tree["speedup"]["predicted"]) for tree in part["trees"]]
        measured = [float(tree["speedup"]["measured"]) for tree in part["trees"]]
        largest = max(largest, *predicted, *measured)
        name = f"temperature {part['temperature']:g}"
        figure.add_trace(
            go.Scatter(
                x=predicted,
                y=measured,
                name=name,
                mode="markers",
                marker={"size": 9, "color": colour(index)},
                text=[escape(str(tree.get("name", ""))) for tree in part["trees"]],
                hovertemplate="%{text}<br>predicted %{x:.2f}x, measured %{y:.2f}x"
                f"<extra>{name}</extra>",
            )
        )
    end = 1.05 * largest
    without_hover = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    figure.add_trace(
        go.Scatter(
            x=[0, end, end, 0],
            y=[0, 1.1 * end, 0.9 * end, 0],
            fill="toself",
            line={"width": 0, "color": GREY},
            opacity=0.25,
            **without_hover,
        )
    )
    figure.add_trace(go.Scatter(x=[0, end], y=[0, end], line={"color": GREY}, **without_hover))
    figure.update_xaxes(title="predicted speed relative to plain decoding", range=[0, end])
    figure.update_yaxes(title="measured speed", range=[0, 1.1 * end])
    return to_json(figure)
