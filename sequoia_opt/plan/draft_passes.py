"""The forward passes of the drafter in one step with a tree.

A draft model runs once for each level of internal nodes, and so does a head on the target, whose
first pass reads all that a step can commit. A block drafter runs once per step, over as many
positions as the tree has levels, whatever their widths. A lookup makes no pass: its profile says
so, and a level takes no time. Knows nothing of times.
"""

from __future__ import annotations

from sequoia_opt.plan.tree import TokenTree

PER_LEVEL, OF_HEAD, PER_BLOCK, NO_PASSES = KINDS = ("level", "head", "block", "none")
"""How often a drafter runs: for each level of a tree, the same as a head on the target, once for
all levels, or never."""

FIRST_WIDTH = 2
"""Tokens of a draft model's first pass: the root, and the token before it, which the draft's
KV cache lacks if that token was an accepted leaf. An engine whose passes need not have the same
shape in every step takes that token along only where the cache lacks it: then the first pass has
one token in most steps."""


def unusual_passes(passes: str) -> str | None:
    """The kind of passes as a plan's file has it: None, which is left out, for a pass a level."""
    return None if passes == PER_LEVEL else passes


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
        first: tokens of a draft model's first pass.
        passes: one of `KINDS`. The first pass of `OF_HEAD` has as many tokens as a step commits at
            most, the only one of `PER_BLOCK` as many as it guesses positions.
    """
    if passes == PER_BLOCK:
        return (tree.depth,) if tree.depth else ()
    first = tree.depth + 1 if passes == OF_HEAD else first
    levels = enumerate(tree.internal_levels)
    widths = (pass_tokens(level, len(nodes), first) for level, nodes in levels)
    return tuple(tokens for tokens in widths if tokens)
