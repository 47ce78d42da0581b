"""Parts that the page's figures share: an empty figure, bars of speeds, JSON.

Knows plotly. Colours of text and lines are the page's, for light and dark.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sequoia_opt.report.style import GREY, HIGHLIGHT, MAIN

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BAR_HEIGHT, FIGURE_HEIGHT = 30, 340  # pixels
# White with a black outline: visible on a bar, and beside it on light and dark pages.
PREDICTION_MARKER = {
    "symbol": "diamond",
    "size": 11,
    "color": "#ffffff",
    "line": {"color": "#000000", "width": 2},
}


def empty_figure(height: int) -> Figure:
    """An empty figure, `height` pixels high and as wide as the page."""
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


def to_json(figure: Figure) -> str:
    """A figure as JSON; the same figure gives the same text."""
    return json.dumps(figure.to_plotly_json(), sort_keys=True, allow_nan=False)


def speed_bars(
    labels: Sequence[str],
    speeds: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    highlighted: Sequence[bool],
    predicted: Sequence[float | None] = (),
) -> str:
    """A bar for each speed, the first on top, with its interval.

    Args:
        labels: of the bars, HTML.
        speeds: relative to plain decoding.
        intervals: low and high end of each speed's interval.
        highlighted: which bars have the second colour.
        predicted: speeds to mark with a diamond; empty if no bar has any.

    Returns:
        The figure as JSON.
    """
    import plotly.graph_objects as go

    figure = empty_figure(BAR_HEIGHT * len(labels) + 90)
    # Plotly would draw two bars of the same label over each other.
    unique_labels = [f"{label}{' ' * index}" for index, label in enumerate(labels)]
    ends = list(zip(speeds, intervals, strict=True))
    figure.add_trace(
        go.Bar(
            y=unique_labels,
            x=list(speeds),
            orientation="h",
            showlegend=False,
            marker={"color": [HIGHLIGHT if chosen else MAIN for chosen in highlighted]},
            error_x={
                "type": "data",
                "array": [max(0.0, high - speed) for speed, (_, high) in ends],
                "arrayminus": [max(0.0, speed - low) for speed, (low, _) in ends],
                "thickness": 1.5,
                "color": GREY,
            },
            customdata=[list(interval) for interval in intervals],
            hovertemplate="%{y}<br>%{x:.2f}x (%{customdata[0]:.2f}–%{customdata[1]:.2f})"
            "<extra></extra>",
        )
    )
    diamonds = [(x, y) for x, y in zip(predicted, unique_labels, strict=False) if x is not None]
    if diamonds:
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in diamonds],
                y=[y for _, y in diamonds],
                mode="markers",
                showlegend=False,
                marker=PREDICTION_MARKER,
                hovertemplate="predicted %{x:.2f}x<extra></extra>",
            )
        )
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="speed relative to plain decoding", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    return to_json(figure)
