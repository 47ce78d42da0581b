"""The trees other tools use: shapes that a solved tree is compared with, or restricted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.types import FloatArray


def chain(size: int) -> TokenTree:
    """One sequence of `size` - 1 guesses: ordinary speculative decoding."""
    return TokenTree([node - 1 for node in range(size)], [0] + [1] * (size - 1))


def k_sequences(k: int, length: int) -> TokenTree:
    """`k` independent sequences of `length` guesses each (SpecInfer's shape)."""
    if length == 0:
        return chain(1)
    below = k * (length - 1)  # nodes below the root's children; each has its parent k nodes before
    return TokenTree(
        [-1] + [0] * k + list(range(1, below + 1)), [0, *range(1, k + 1)] + [1] * below
    )


def k_ary(k: int, depth: int) -> TokenTree:
    """The tree of depth `depth` in which every internal node has `k` children."""
    guesses = range(sum(k**level for level in range(1, depth + 1)))
    return TokenTree(
        [-1] + [guess // k for guess in guesses], [0] + [guess % k + 1 for guess in guesses]
    )


NAMES = ("chain", "k-sequences", "k-ary")
"""The shapes that other engines run, in the order of `shaped_trees`."""


@dataclass(frozen=True)
class ShapedTrees:
    """All trees of one shape up to a size and a depth, as arrays by k and depth.

    The first index stands for k (a chain has only one row), the second for the depth.

    Attributes:
        expected: E(T), independence assumed, [ks, depths]; NaN where the tree is too large.
        sizes: nodes of each tree, [ks, depths].
        widths: internal nodes on each level, [ks, depths, levels].
        tree: builds a tree from its two indices.
    """

    expected: FloatArray
    sizes: IntArray
    widths: IntArray
    tree: Callable[[int, int], TokenTree]


def _shaped_trees(
    expected: FloatArray,
    nodes: IntArray,
    max_size: int,
    tree: Callable[[int, int], TokenTree],
) -> ShapedTrees:
    """From E by depth and the nodes on each level, both [ks, max_depth + 1]."""
    sizes = np.cumsum(nodes, axis=1)
    levels = nodes.shape[1] - 1
    # In a tree of depth D the levels 0 … D - 1 are internal.
    is_internal = np.arange(levels) < np.arange(levels + 1)[:, None]
    return ShapedTrees(
        expected=np.where(sizes <= max_size, expected, np.nan),
        sizes=sizes,
        widths=np.where(is_internal, nodes[:, None, :levels], 0),
        tree=tree,
    )


def shaped_trees(table: FloatArray, max_size: int) -> dict[str, ShapedTrees]:
    """The trees of each shape in `NAMES`, for the rates `table` [max_depth, W]."""
    max_depth, ranks = table.shape
    first_level: FloatArray = np.cumsum(table[:1], axis=1).T if max_depth else np.ones((ranks, 0))
    chain_values = np.concatenate((np.ones(min(1, max_depth)), np.cumprod(table[1:, 0])))
    level_tokens = first_level * chain_values  # [k, depth]: tokens of each level of k sequences
    sequences: FloatArray = np.cumsum(np.insert(level_tokens, 0, 1.0, axis=1), axis=1)
    ks = np.arange(1, ranks + 1)[:, None]
    sequence_nodes = np.hstack((np.ones_like(ks), np.repeat(ks, max_depth, axis=1)))
    # Counts past the largest size only have to stay past it; clipped, they do not overflow.
    powers = ks.astype(float) ** np.arange(max_depth + 1).clip(max=64)
    powers = np.minimum(powers, max_size + 1)
    level_values = np.cumprod(np.cumsum(table, axis=1), axis=0).T  # [k, depth]
    full: FloatArray = np.cumsum(np.insert(level_values, 0, 1.0, axis=1), axis=1)
    return {
        "chain": _shaped_trees(
            sequences[:1], sequence_nodes[:1], max_size, lambda _, depth: chain(depth + 1)
        ),
        "k-sequences": _shaped_trees(
            sequences[1:],
            sequence_nodes[1:],
            max_size,
            lambda row, depth: k_sequences(row + 2, depth),
        ),
        "k-ary": _shaped_trees(
            full[1:],
            powers[1:].astype(np.int64),
            max_size,
            lambda row, depth: k_ary(row + 2, depth),
        ),
    }
