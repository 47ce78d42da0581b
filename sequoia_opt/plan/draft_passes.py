"""The forward passes of the drafter in one step with a tree.

A draft model runs once for each level of internal nodes. A block drafter runs once per step, over
as many positions as the tree has levels, whatever their widths. A lookup makes no pass: its profile
says so, and a level takes no time. Knows nothing of times.
"""

from __future__ import annotations

from sequoia_opt.plan.tree import TokenTree

PER_LEVEL, PER_BLOCK, NO_PASSES = "level", "block", "none"
"""How often a drafter runs: for each level of a tree, once for all its levels, or never."""

FIRST_WIDTH = 2
"""Tokens of a draft model's first pass: the root, and the token before it, which the draft's
KV cache lacks if that token was an accepted leaf. An engine whose passes need not have the same
shape in every step takes that token along only where the cache lacks it: then the first pass has
one token in most steps. A head on the target reads all that a step can commit in its first pass, a
token more for each level: these are in the overhead per level, which is fitted to whole steps."""


def pass_tokens(level: int, internal: int, first: int = FIRST_WIDTH) -> int:
    """Tokens of the drafter's forward pass at a level, from 0; 0 if it makes none there.

    A draft model passes over the internal nodes of each level, but over `first` tokens at the
    first one.

    Args:
        internal: number of internal nodes on the level.
    """
    if internal == 0:
        return 0
    return first if level == 0 else internal


def draft_passes(
    tree: TokenTree, first: int = FIRST_WIDTH, passes: str = PER_LEVEL
) -> tuple[int, ...]:
    """Tokens of each forward pass of the drafter in one step; empty for plain decoding.

    Args:
        first: tokens of the first pass, where there is one for each level.
        passes: `PER_LEVEL`; or `PER_BLOCK`, whose only pass has as many tokens as it guesses
            positions.
    """
    if passes == PER_BLOCK:
        return (tree.depth,) if tree.depth else ()
    levels = enumerate(tree.internal_levels)
    widths = (pass_tokens(level, len(nodes), first) for level, nodes in levels)
    return tuple(tokens for tokens in widths if tokens)
