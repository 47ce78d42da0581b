"""Which forward passes of the draft a step makes with a tree.

A draft model runs once for each level of internal nodes. Other kinds of drafters run once, or
not at all; what they cost is likewise the widths of their passes.
"""

from __future__ import annotations

from sequoia_opt.plan.tree import TokenTree

FIRST_WIDTH = 2
"""Tokens of a draft model's first pass: the root, and the token before it, which the draft's
cache lacks if that was an accepted leaf."""


def draft_passes(tree: TokenTree) -> tuple[int, ...]:
    """Tokens of each forward pass of a draft model in one step; empty for plain decoding.

    One pass for each level that has internal nodes, as wide as they are many, the first one
    `FIRST_WIDTH` wide.
    """
    return tuple(
        FIRST_WIDTH if depth == 0 else len(level)
        for depth, level in enumerate(tree.internal_levels)
    )
