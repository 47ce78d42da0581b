"""A part of the page: a figure with its heading and text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A figure with its heading and text.

    Attributes:
        name: of its element in the page.
        text: what the figure shows, in one or two sentences.
        figure: plotly's JSON.
    """

    name: str
    title: str
    text: str
    figure: str
