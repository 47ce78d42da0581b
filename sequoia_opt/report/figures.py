"""The figures of a report, as plotly draws them in the page: JSON of data and layout.

Knows what is shown and how; colours of text and lines are the page's own, for light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report.plots import COLOURS, Results, end_of
from sequoia_opt.types import FloatArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FIRST, SECOND = COLOURS[:2]
SCALE = "Viridis"  # read without telling red from green, and in grey
SHOWN_RANKS, SHOWN_LINES = 16, 4
GREY = "#8c959f"  # on white and on black
OUTLINE = {"color": "#000000", "width": 2}
LEVEL, BAR, PLAIN = 64, 30, 340  # pixels: of a tree's level, of a bar, of other figures


def tree(drawn: TokenTree, values: FloatArray) -> str:
    """A tree from the root down.

    Args:
        values: [size], how probable each node is.
    """
    import plotly.graph_objects as go

    across = places(drawn)
    down = -drawn.depths
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for node, parent in list(enumerate(drawn.parents))[1:]:
        lines_x += [across[parent], across[node], None]
        lines_y += [float(down[parent]), float(down[node]), None]
    shares = 100 * values / values.sum()
    label = drawn.size <= 64
    figure = _figure(LEVEL * (drawn.depth + 1) + 60)
    figure.add_trace(
        go.Scatter(
            x=lines_x,
            y=lines_y,
            mode="lines",
            hoverinfo="skip",
            line={"color": GREY, "width": 1},
        )
    )
    figure.add_trace(
        go.Scatter(
            x=across,
            y=down.tolist(),
            mode="markers+text" if label else "markers",
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
            "reached %{customdata[2]:.3f}<br>%{customdata[3]:.1f} % of all tokens<extra></extra>",
        )
    )
    figure.update_layout(showlegend=False)
    widest = max(abs(x) for x in across)
    figure.update_xaxes(visible=False, range=[-widest - 1, widest + 1])
    figure.update_yaxes(visible=False, range=[-drawn.depth - 0.5, 0.5])
    return _json(figure)


def places(drawn: TokenTree) -> list[float]:
    """Where each node stands from left to right: leaves beside one another, parents above the
    middle of their children, the root at 0."""
    children = drawn.children
    order, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += reversed(children[node])
    across = [0.0] * drawn.size
    leaves = [node for node in order if not children[node]]
    for place, node in enumerate(leaves):
        across[node] = float(place)
    for node in reversed(order):
        if children[node]:
            own = [across[child] for child in children[node]]
            across[node] = (own[0] + own[-1]) / 2
    return [x - across[0] for x in across]


def surface(plan: Plan) -> str:
    """Speed of the trees of most tokens over size and depth."""
    import plotly.graph_objects as go

    speedups = plan.speed * float(plan.choice.plain_ms[0]) / 1000
    depths, sizes = (np.arange(count) for count in speedups.shape)
    shown = np.isfinite(speedups[:, 1:]).any(axis=1)
    rows = np.round(speedups[shown][:, 1:], 4).tolist()
    grid = [[speed if speed == speed else None for speed in row] for row in rows]  # JSON has no NaN
    figure = _figure(PLAIN + 60)
    figure.add_trace(
        go.Heatmap(
            x=sizes[1:].tolist(),
            y=depths[shown].tolist(),
            z=grid,
            colorscale=SCALE,
            hovertemplate="%{x} nodes, depth %{y}<br>%{z:.2f} × plain decoding<extra></extra>",
            colorbar={"title": {"text": "speed"}, "thickness": 12},
        )
    )
    [this] = plan.given
    others = [each for _, each in _others(plan) if each.tree.size > 1]
    for name, found, symbol, colour in (
        ("next best", others, "circle-open", "#ffffff"),
        (this.name, [this], "star", SECOND),
    ):
        figure.add_trace(
            go.Scatter(
                x=[each.tree.size for each in found],
                y=[each.tree.depth for each in found],
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 12, "color": colour, "line": {"width": 2}},
                customdata=[float(each.speedup[0]) for each in found],
                hovertemplate="%{x} nodes, depth %{y}<br>%{customdata:.2f} × plain decoding"
                f"<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="nodes")
    figure.update_yaxes(title="depth")
    figure.update_layout(showlegend=False)
    return _json(figure)


def candidates(plan: Plan) -> str:
    """Predicted speeds of this tree, the next best, and what other tools use."""
    [this] = plan.given
    rows = [(this.name, this), *_others(plan), *((each.name, each) for each in plan.baselines)]
    labels = [f"{escape(name)}, {each.tree.size} nodes" for name, each in rows]
    speeds = [float(each.speedup[0]) for _, each in rows]
    return _bars(
        labels, speeds, [interval(each.speedup) for _, each in rows], [e is this for _, e in rows]
    )


def _others(plan: Plan) -> list[tuple[str, Candidate]]:
    """What the solver would have taken instead of this tree."""
    ranking = {
        each.tree: (name, each)
        for name, each in (
            *(("next best", each) for each in plan.runners_up),
            ("fastest", plan.fastest),
            ("solver's choice", plan.choice),
        )
    }
    ranking.pop(plan.given[0].tree, None)
    return sorted(ranking.values(), key=lambda row: -float(row[1].speedup[0]))


def race(results: Results, predicted: Mapping[str, float] | None = None) -> str:
    """Measured speeds of each method.

    Args:
        predicted: what was, by method.
    """
    rows = results.rows
    names = [str(row["name"]) for row in rows]
    return _bars(
        [escape(name) for name in names],
        [float(row["speedup"]) for row in rows],
        [
            (end_of(row, "speedup_low", "speedup"), end_of(row, "speedup_high", "speedup"))
            for row in rows
        ],
        ["solved tree" in name for name in names],
        [(predicted or {}).get(name) for name in names],
    )


def _bars(
    labels: Sequence[str],
    speeds: Sequence[float],
    ends: Sequence[tuple[float, float]],
    marked: Sequence[bool],
    predicted: Sequence[float | None] = (),
) -> str:
    """A bar for each speed, the first on top, with its interval, and a diamond where it was
    predicted."""
    import plotly.graph_objects as go

    figure = _figure(BAR * len(labels) + 90)
    # Two bars of one name would be one.
    places = [f"{label}{' ' * place}" for place, label in enumerate(labels)]
    figure.add_trace(
        go.Bar(
            y=places,
            x=list(speeds),
            orientation="h",
            showlegend=False,
            marker={"color": [SECOND if each else FIRST for each in marked]},
            error_x={
                "type": "data",
                "array": [max(0.0, high - x) for x, (_, high) in zip(speeds, ends, strict=True)],
                "arrayminus": [max(0.0, x - low) for x, (low, _) in zip(speeds, ends, strict=True)],
                "thickness": 1.5,
                "color": GREY,
            },
            customdata=[list(each) for each in ends],
            hovertemplate="%{y}<br>%{x:.2f} × (%{customdata[0]:.2f} – %{customdata[1]:.2f})"
            "<extra></extra>",
        )
    )
    known = [(x, y) for x, y in zip(predicted, places, strict=False) if x is not None]
    if known:
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in known], y=[y for _, y in known], mode="markers", showlegend=False,
                # Seen on a bar, and beside it in the light and in the dark.
                marker={"symbol": "diamond", "size": 11, "color": "#ffffff", "line": OUTLINE},
                hovertemplate="predicted %{x:.2f} ×<extra></extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="speed over plain decoding", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return _json(figure)


def latency(model: ModelLatency) -> str:
    """A model's curves at each context, of one sequence and of several."""
    import plotly.graph_objects as go

    figure = _figure(PLAIN)
    several = any(curve.batch > 1 for curve in model.curves)
    for place, curve in enumerate(model.curves):
        colour = COLOURS[place % len(COLOURS)]
        name = f"{curve.context} cached" + (f", {curve.batch} sequences" if several else "")
        ends = [*curve.high_ms.tolist(), *curve.low_ms.tolist()[::-1]]
        figure.add_trace(
            go.Scatter(
                x=[*curve.tokens, *curve.tokens[::-1]], y=ends, fill="toself", mode="lines",
                line={"width": 0, "color": colour}, opacity=0.25, hoverinfo="skip",
                legendgroup=name, showlegend=False,
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=curve.tokens,
                y=curve.median_ms.tolist(),
                name=name,
                legendgroup=name,
                mode="lines+markers",
                marker={"size": 4, "color": colour},
                line={"color": colour, "width": 1.5},
                customdata=np.stack([curve.low_ms, curve.high_ms], axis=1).tolist(),
                hovertemplate="%{x} tokens: %{y:.3g} ms (%{customdata[0]:.3g} – "
                f"%{{customdata[1]:.3g}})<extra>{name}</extra>",
            )
        )
    figure.update_xaxes(title="tokens of a forward", rangemode="tozero")
    figure.update_yaxes(title="ms", rangemode="tozero")
    return _json(figure)


def acceptance(rates: Acceptance) -> str:
    """Rates by rank with their intervals."""
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
    figure = _figure(PLAIN)
    figure.add_trace(
        go.Bar(
            x=list(range(1, len(shown) + 1)),
            y=shown.tolist(),
            marker={"color": FIRST},
            hovertemplate="rank %{x}: %{y:.4f}<extra></extra>",
            **errors,
        )
    )
    figure.update_xaxes(title="rank", dtick=1)
    figure.update_yaxes(title="accepted", rangemode="tozero")
    return _json(figure)


def by_depth(rates: Acceptance) -> str:
    """The first ranks' rates by depth."""
    import plotly.graph_objects as go

    assert rates.by_depth is not None
    figure = _figure(PLAIN)
    for rank in range(min(SHOWN_LINES, rates.width)):
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(rates.by_depth) + 1)),
                y=rates.by_depth[:, rank].tolist(),
                name=f"rank {rank + 1}",
                mode="lines+markers",
                line={"color": COLOURS[rank]},
                hovertemplate=f"depth %{{x}}: %{{y:.4f}}<extra>rank {rank + 1}</extra>",
            )
        )
    figure.update_xaxes(title="depth", dtick=1)
    figure.update_yaxes(title="accepted", rangemode="tozero")
    return _json(figure)


def calibration(results: Results) -> str:
    """Predicted and measured speeds, tree by tree."""
    import plotly.graph_objects as go

    figure = _figure(PLAIN + 80)
    largest = 0.0
    for place, part in enumerate(results.document["calibration"]):
        speeds = [each["speedup"] for each in part["trees"]]
        predicted, measured = (
            [float(each[key]) for each in speeds] for key in ("predicted", "measured")
        )
        largest = max(largest, *predicted, *measured)
        name = f"temperature {part['temperature']:g}"
        figure.add_trace(
            go.Scatter(
                x=predicted,
                y=measured,
                name=name,
                mode="markers",
                marker={"size": 9, "color": COLOURS[place % len(COLOURS)]},
                text=[escape(str(each.get("name", ""))) for each in part["trees"]],
                hovertemplate="%{text}<br>predicted %{x:.2f} ×, measured %{y:.2f} ×"
                f"<extra>{name}</extra>",
            )
        )
    end = 1.05 * largest
    band = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    figure.add_trace(
        go.Scatter(
            x=[0, end, end, 0], y=[0, 1.1 * end, 0.9 * end, 0], fill="toself",
            line={"width": 0, "color": GREY}, opacity=0.25, **band,
        )
    )  # fmt: skip
    figure.add_trace(go.Scatter(x=[0, end], y=[0, end], line={"color": GREY}, **band))
    figure.update_xaxes(title="predicted speed over plain decoding", range=[0, end])
    figure.update_yaxes(title="measured", range=[0, 1.1 * end])
    return _json(figure)


def _figure(height: int) -> Figure:
    """An empty figure of so many pixels, as wide as the page lets it be."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"font": {"size": 13}},
        font={"size": 13},
        dragmode=False,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def _json(figure: Figure) -> str:
    """The same figure, the same text."""
    import json

    return json.dumps(figure.to_plotly_json(), sort_keys=True, allow_nan=False)
