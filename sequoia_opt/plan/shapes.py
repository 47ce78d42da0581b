"""The trees other tools use: what a solved tree is compared with, or has to be."""

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
    return TokenTree.from_paths([(first, *[1] * (length - 1)) for first in range(1, k + 1)])


def k_ary(k: int, depth: int) -> TokenTree:
    """Every node above `depth` has `k` children."""
    paths: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        paths = [(*path, rank) for path in paths for rank in range(1, k + 1)]
    return TokenTree.from_paths(paths)


NAMES = ("chain", "k-sequences", "k-ary")
"""What other engines run, in the order of `families`."""


@dataclass(frozen=True)
class Shapes:
    """All trees of one shape up to a size and a depth, as numbers: [first parameter, depth].

    Attributes:
        expected: E(T), independence assumed; NaN where there is no such tree.
        sizes: nodes of each.
        widths: internal nodes on each level, [first parameter, depth, levels].
        tree: builds one from its two places.
    """

    expected: FloatArray
    sizes: IntArray
    widths: IntArray
    tree: Callable[[int, int], TokenTree]


def _shapes(
    expected: FloatArray,
    nodes: IntArray,
    max_size: int,
    tree: Callable[[int, int], TokenTree],
) -> Shapes:
    """From E and the nodes on each level, [first parameter, max_depth + 1] both."""
    sizes = np.cumsum(nodes, axis=1)
    levels = nodes.shape[1] - 1
    # Of a tree of depth D the levels 0 … D - 1 are internal.
    inside = np.arange(levels) < np.arange(levels + 1)[:, None]
    return Shapes(
        expected=np.where(sizes <= max_size, expected, np.nan),
        sizes=sizes,
        widths=np.where(inside, nodes[:, None, :levels], 0),
        tree=tree,
    )


def families(table: FloatArray, max_size: int) -> dict[str, Shapes]:
    """The shapes that other engines run, for the rates `table` [max_depth, W]."""
    max_depth, ranks = table.shape
    first: FloatArray = np.cumsum(table[:1], axis=1).T if max_depth else np.ones((ranks, 0))
    chains = np.concatenate((np.ones(min(1, max_depth)), np.cumprod(table[1:, 0])))
    along = first * chains  # [k, depth]: tokens of each level of k sequences
    sequences: FloatArray = np.cumsum(np.insert(along, 0, 1.0, axis=1), axis=1)
    every = np.arange(1, ranks + 1)[:, None]
    flat = np.hstack((np.ones_like(every), np.repeat(every, max_depth, axis=1)))
    # Past the largest size counts only have to stay past it, not to grow without bound.
    powers = every.astype(float) ** np.arange(max_depth + 1).clip(max=64)
    powers = np.minimum(powers, max_size + 1)
    products = np.cumprod(np.cumsum(table, axis=1), axis=0).T  # [k, depth]
    full: FloatArray = np.cumsum(np.insert(products, 0, 1.0, axis=1), axis=1)
    return {
        "chain": _shapes(sequences[:1], flat[:1], max_size, lambda _, depth: chain(depth + 1)),
        "k-sequences": _shapes(
            sequences[1:], flat[1:], max_size, lambda k, depth: k_sequences(k + 2, depth)
        ),
        "k-ary": _shapes(
            full[1:], powers[1:].astype(np.int64), max_size, lambda k, depth: k_ary(k + 2, depth)
        ),
    }
