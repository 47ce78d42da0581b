"""The most expected tokens for every size and depth: E*(n, D) and the trees that attain it.

Two exact methods check each other: best-first where rates fall with the rank, and the dynamic
program of the Sequoia paper (section 3.1) for any rates. Knows nothing of time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.types import FloatArray


class BestTrees(ABC):
    """The best tree of each size n ≤ `max_size` for each depth limit D ≤ `max_depth`.

    Attributes:
        expected: [max_depth + 1, max_size + 1]: E*(n, D), NaN where no tree of n nodes has
            depth ≤ D (also at n = 0).
        method: name of the method.
    """

    expected: FloatArray
    method: ClassVar[str]

    @abstractmethod
    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""

    @abstractmethod
    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`."""


class BestNodes(NamedTuple):
    """The nodes of one depth that a best tree may have, the most valuable first.

    Attributes:
        values: probability that verification reaches each node, [nodes].
        parents: index of each node's parent among the best nodes one depth up, [nodes].
        ranks: each node's rank among its siblings, from 1, [nodes].
    """

    values: FloatArray
    parents: IntArray
    ranks: IntArray

    def first(self, count: int) -> BestNodes:
        """The `count` most valuable nodes."""
        return BestNodes(self.values[:count], self.parents[:count], self.ranks[:count])


ROOT = BestNodes(np.ones(1), np.zeros(1, np.int64), np.zeros(1, np.int64))


@lru_cache(maxsize=64)
def _child_candidates(nodes: int, ranks: int, size: int) -> tuple[IntArray, IntArray]:
    """Parents (their index by falling value) and ranks of the children that can be among the
    `size` best of their depth.

    The child of rank k of the parent with index i is worth no more than the (i + 1) k children
    of the same or a lower rank whose parents are worth no less, itself among them: it can be
    among the best only if (i + 1) k ≤ `size`.
    """
    indices = np.arange(min(nodes, size))
    counts = np.minimum(ranks, size // (indices + 1))
    parents = np.repeat(indices, counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return parents, np.arange(len(parents)) - starts + 1


def best_children(nodes: BestNodes, rates: FloatArray, size: int) -> BestNodes:
    """The `size` most valuable children of nodes of one depth.

    Ties go to the children of more valuable parents, then to lower ranks.

    Args:
        rates: acceptance of each rank at the children's depth, [W], not rising.
    """
    parents, ranks = _child_candidates(len(nodes.values), len(rates), size)
    values = nodes.values[parents] * rates[ranks - 1]
    order = np.argsort(-values, kind="stable")[:size]
    return BestNodes(values[order], parents[order], ranks[order])


def tree_of(nodes_by_depth: list[BestNodes], counts: IntArray) -> TokenTree:
    """The tree of the first `counts[d]` best nodes of each depth; they include their parents."""
    parents, ranks = [np.array([-1])], [np.array([0])]
    # Of the depth above: the position of each best node in its level, and the level's first node.
    positions, first = np.zeros(1, np.int64), 0
    for nodes, count in zip(nodes_by_depth[1:], counts[1:], strict=False):
        if count == 0:
            break
        above = positions[nodes.parents[:count]]
        order = np.lexsort((nodes.ranks[:count], above))
        parents.append(above[order] + first)
        ranks.append(nodes.ranks[order])
        first += len(positions)
        positions = np.empty(count, np.int64)
        positions[order] = np.arange(count)
    return TokenTree(np.concatenate(parents).tolist(), np.concatenate(ranks).tolist())


class BestFirst(BestTrees):
    """E*(n, D) for rates that do not rise with the rank.

    With such rates a node's value, the product of rates along its path, never exceeds the value
    of its parent or of its elder sibling. So the n most valuable nodes of depth ≤ D (ties: the
    shallower first) form a tree, and no other tree has a larger sum. The best nodes of a depth
    are children of the best nodes one depth up, and the best nodes within a depth limit are
    those within the limit before, merged with one more depth: O(D n log n log W) for all sizes
    and depths together.
    """

    method = "best-first"

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        self._nodes_by_depth = [ROOT]
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0, 1] = 1.0
        # For each depth limit, the depth of each best node in the order of falling value.
        self._depths = [np.zeros(1, np.int64)]
        values = ROOT.values
        for depth, rates in enumerate(table, start=1):
            nodes = best_children(self._nodes_by_depth[-1], rates, max_size)
            self._nodes_by_depth.append(nodes)
            values = np.concatenate((values, nodes.values))
            order = np.argsort(-values, kind="stable")[:max_size]
            values = values[order]
            deepest = np.full(len(nodes.values), depth)
            self._depths.append(np.concatenate((self._depths[-1], deepest))[order])
            self.expected[depth, 1 : len(values) + 1] = np.cumsum(values)

    def _counts(self, limit: int) -> IntArray:
        """Nodes at each depth of the tree of each size, [nodes + 1, limit + 1]."""
        depths = self._depths[limit]
        counts = np.zeros((len(depths) + 1, limit + 1), np.int64)
        counts[np.arange(1, len(depths) + 1), depths] = 1
        return np.cumsum(counts, axis=0)

    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""
        max_depth, columns = len(self._nodes_by_depth) - 1, self.expected.shape[1]
        # A node is internal as soon as the tree has its first child, the elder of all siblings.
        internal = [np.append(0, np.cumsum(nodes.ranks == 1)) for nodes in self._nodes_by_depth]
        widths = np.zeros((max_depth + 1, columns, max_depth), np.int64)
        for limit in range(1, max_depth + 1):
            counts = self._counts(limit)
            for depth in range(1, limit + 1):
                widths[limit, : len(counts), depth - 1] = internal[depth][counts[:, depth]]
        return widths

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`."""
        return tree_of(self._nodes_by_depth, np.bincount(self._depths[depth][:size]))


class DynamicProgram(BestTrees):
    """E*(n, D) for any rates, also ones that rise with the rank (Sequoia, section 3.1).

    With F(m, a, b) the most tokens of a tree of m nodes whose root is at depth a and may have b
    more levels below it, and G(m, k) that of m nodes shared among its children from rank k on:

        F(m, a, b) = 1 + G(m - 1, 1)
        G(m, k)    = max over j ≥ 1 of p[a + 1][k] F(j, a + 1, b - 1) + G(m - j, k + 1)
        G(0, k)    = 0

    Past the last depth at which the rates change, F does not depend on a: with one vector for
    all depths, one program serves all limits. Once another level changes no F, no further one
    does: the best trees need a few levels only. O(n² W) for each F.
    """

    method = "dynamic programming"

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        changes = np.flatnonzero((table[1:] != table[:-1]).any(axis=1))
        last = int(changes[-1]) + 1 if len(changes) else 0  # the first of the rows that repeat
        self._table, self._size, self._last = table, max_size, last
        self._deepest = 0  # the depth limit past which nothing changes
        # By (a, b): the j that each G(m, k) chose, [W, m]; internal nodes on each level, [m, b].
        self._choices: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._widths: dict[tuple[int, int], IntArray] = {}
        leaf = np.full(max_size + 1, -np.inf)
        leaf[1] = 1.0
        best = dict.fromkeys(range(last + 1), leaf)
        self._widths = {(a, 0): np.zeros((max_size + 1, 0), np.int64) for a in best}
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0] = leaf
        for below in range(1, max_depth + 1):
            # Depth a with `below` levels left occurs only under a limit of a + below levels.
            depths = range(min(last, max_depth - below) + 1)
            solved = {a: self._solve(a, below, best[min(a + 1, last)]) for a in depths}
            if all(np.array_equal(solved[a], best[a]) for a in depths):
                self.expected[below:] = best[0]
                break
            best = solved
            self.expected[below] = best[0]
            self._deepest = below
        self.expected[~np.isfinite(self.expected)] = np.nan

    def _solve(self, depth: int, below: int, child: FloatArray) -> FloatArray:
        """F(·, depth, below) from the children's F, both [max_size + 1]."""
        size, rates = self._size, self._table[depth, : self._size - 1]
        widths_of_child = self._widths[min(depth + 1, self._last), below - 1]
        choice = np.zeros((len(rates), size), np.int32)
        exists = np.isfinite(child[1:])
        gains = np.where(exists, np.outer(rates, np.where(exists, child[1:], 0.0)), -np.inf)
        # Row m - 1 of `rest` is G(m - j) for j = 1, 2, …: a view of one reversed, padded copy.
        padded = np.full(2 * size, -np.inf)
        rest = sliding_window_view(padded, size)[size - 1 :: -1]
        share = np.full(size, -np.inf)  # G of the next rank
        share[0] = 0.0
        widths = np.zeros((size, below - 1), np.int64)
        buffer = np.empty(size * size)
        for rank in range(len(rates) - 1, -1, -1):
            most = size - 1 - rank  # the root and the elder siblings take one node each
            padded[size - most : size] = share[most - 1 :: -1]
            totals = buffer[: most * most].reshape(most, most)
            np.add(rest[:most, :most], gains[rank, :most], out=totals)
            best = totals.argmax(axis=1)
            nodes = np.arange(most)
            choice[rank, 1 : most + 1] = best + 1
            share[1 : most + 1] = totals[nodes, best]
            widths[1 : most + 1] = widths_of_child[best + 1] + widths[nodes - best]
        self._choices[depth, below] = choice
        most_tokens = np.full(size + 1, -np.inf)
        most_tokens[1:] = 1.0 + share
        root_is_internal = (np.arange(size + 1) > 1).astype(np.int64)
        widths_below = np.vstack((widths[:1], widths))
        self._widths[depth, below] = np.column_stack((root_is_internal, widths_below))
        return most_tokens

    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""
        max_depth = len(self._table)
        widths = np.zeros((*self.expected.shape, max_depth), np.int64)
        for depth in range(1, max_depth + 1):
            widths_of_limit = self._widths[0, min(depth, self._deepest)]
            widths[depth, :, : widths_of_limit.shape[1]] = widths_of_limit
        return widths

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`, from the choices, root first."""
        parents, ranks = [-1], [0]
        subtree_sizes = [size]  # of each node of one level
        first = 0  # the level's first node
        for above, below in enumerate(range(min(depth, self._deepest), 0, -1)):
            choices = self._choices[min(above, self._last), below]
            sizes_below: list[int] = []
            for node, nodes in enumerate(subtree_sizes, start=first):
                remaining, rank = nodes - 1, 0
                while remaining:
                    sizes_below.append(choices.item(rank, remaining))
                    remaining -= sizes_below[-1]
                    rank += 1
                    parents.append(node)
                    ranks.append(rank)
            first += len(subtree_sizes)
            subtree_sizes = sizes_below
        return TokenTree(parents, ranks)


def best_trees(table: FloatArray, max_size: int) -> BestTrees:
    """E*(n, D) for the rates `table` [max_depth, W]: best-first where that is exact, else by
    dynamic programming."""
    if (np.diff(table, axis=1) <= 0).all():
        return BestFirst(table, max_size)
    return DynamicProgram(table, max_size)
