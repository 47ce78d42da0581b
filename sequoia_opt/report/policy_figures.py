"""The figures of an adaptive plan, as plotly's JSON.

Knows what each figure shows. Knows nothing of the page around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from sequoia_opt.report.plotly_charts import FIGURE_HEIGHT, empty_figure, speed_bars, to_json
from sequoia_opt.report.style import GREY, MAIN


def plans(predictions: Mapping[str, tuple[float, float, float]], highlighted: str) -> str:
    """Predicted speeds by the kind of plan.

    Args:
        predictions: for each kind, the speed relative to plain decoding and its interval.
        highlighted: the kind that the page is about.
    """
    return speed_bars(
        labels=[escape(name) for name in predictions],
        speeds=[speed for speed, _, _ in predictions.values()],
        intervals=[(low, high) for _, low, high in predictions.values()],
        highlighted=[name == highlighted for name in predictions],
    )


def shares(shares_by_number: Mapping[str, float], axis: str) -> str:
    """How often each number occurred."""
    import plotly.graph_objects as go

    figure = empty_figure(FIGURE_HEIGHT)
    figure.add_trace(
        go.Bar(
            x=list(shares_by_number),
            y=[100 * share for share in shares_by_number.values()],
            marker={"color": MAIN},
            hovertemplate=f"%{{x}} {axis}: %{{y:.1f}}% of steps<extra></extra>",
        )
    )
    figure.update_xaxes(title=axis, type="category")
    figure.update_yaxes(title="% of steps", rangemode="tozero")
    return to_json(figure)


def reliability(
    predicted: Sequence[float], accepted: Sequence[float], guesses: Sequence[int]
) -> str:
    """Accepted against predicted shares, a point for each bin of guesses.

    Args:
        guesses: how many each bin has.
    """
    import plotly.graph_objects as go

    figure = empty_figure(FIGURE_HEIGHT + 80)
    most = max([*guesses, 1])
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": GREY},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=list(predicted),
            y=list(accepted),
            mode="markers",
            showlegend=False,
            marker={"size": [6 + 18 * (count / most) ** 0.5 for count in guesses], "color": MAIN},
            customdata=list(guesses),
            hovertemplate="predicted %{x:.3f}, accepted %{y:.3f}<br>%{customdata} guesses"
            "<extra></extra>",
        )
    )
    figure.update_xaxes(title="predicted acceptance", range=[0, 1.02])
    figure.update_yaxes(title="accepted", range=[0, 1.02])
    return to_json(figure)
