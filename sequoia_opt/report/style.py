"""Colours and marks that the page and the figures share."""

from __future__ import annotations

# Okabe and Ito's palette and two more, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#999933")
MAIN, HIGHLIGHT = COLOURS[:2]
GREY = "#8c959f"  # visible on white and on black
MARKERS = "os^Dv<>P"  # matplotlib's


def colour(index: int) -> str:
    """The colour of the `index`-th line or set of points."""
    return COLOURS[index % len(COLOURS)]
