"""The most tokens for every size and depth: E*(n, D) and the trees that reach it.

Two exact ways, which check each other: best-first where rates fall with the rank, and the
dynamic programme of the Sequoia paper (section 3.1) for any rates. Knows nothing of time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.types import FloatArray


class Family:
    """The best tree of each size n ≤ `max_size` for each depth limit D ≤ `max_depth`.

    Attributes:
        expected: [max_depth + 1, max_size + 1]: E*(n, D), NaN where no tree of n nodes has
            depth ≤ D (also at n = 0).
    """

    expected: FloatArray

    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""
        raise NotImplementedError

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`."""
        raise NotImplementedError


class Level(NamedTuple):
    """The nodes of one depth that a best tree may have, the most valuable first.

    Attributes:
        values: probability that verification reaches each node, [nodes].
        parents: each one's place in the level above.
        ranks: each one's place among its siblings, from 1.
    """

    values: FloatArray
    parents: IntArray
    ranks: IntArray

    def first(self, count: int) -> Level:
        """The most valuable nodes alone."""
        return Level(self.values[:count], self.parents[:count], self.ranks[:count])


ROOT = Level(np.ones(1), np.zeros(1, np.int64), np.zeros(1, np.int64))


@lru_cache(maxsize=64)
def _heirs(nodes: int, ranks: int, size: int) -> tuple[IntArray, IntArray]:
    """Pairs (place in a level, rank) whose child can be among the `size` best of its level.

    A child is worth no more than those of the same or a lower rank whose parents are worth no
    less: with (place + 1) · rank of these, itself counted, the product is at most `size`.
    """
    rows = np.arange(min(nodes, size))
    counts = np.minimum(ranks, size // (rows + 1))
    parents = np.repeat(rows, counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return parents, np.arange(len(parents)) - starts + 1


def next_level(level: Level, rates: FloatArray, size: int) -> Level:
    """The `size` most valuable children of a level; ties to elder parents, then elder siblings."""
    parents, ranks = _heirs(len(level.values), len(rates), size)
    values = level.values[parents] * rates[ranks - 1]
    order = np.argsort(-values, kind="stable")[:size]
    return Level(values[order], parents[order], ranks[order])


def tree_of(levels: list[Level], counts: IntArray) -> TokenTree:
    """The tree of the first `counts[d]` nodes of each level; they include their parents."""
    parents, ranks = [np.array([-1])], [np.array([0])]
    places, first = np.zeros(1, np.int64), 0  # of the level above: its nodes' order, and start
    for level, count in zip(levels[1:], counts[1:], strict=False):
        if count == 0:
            break
        above = places[level.parents[:count]]
        order = np.lexsort((level.ranks[:count], above))
        parents.append(above[order] + first)
        ranks.append(level.ranks[order])
        first += len(places)
        places = np.empty(count, np.int64)
        places[order] = np.arange(count)
    return TokenTree(np.concatenate(parents).tolist(), np.concatenate(ranks).tolist())


class BestFirst(Family):
    """E*(n, D) for rates that do not increase with the rank.

    There a node's value, the product of rates along its path, never exceeds its parent's or
    its elder sibling's, so the n nodes of largest value among depth ≤ D (ties: the shallower
    first) are a tree, and no other tree has a larger sum. Each level's best nodes are children
    of the best of the level above, and each depth limit's are those of the limit before merged
    with one level more: O(D n log n log W), all sizes and depths at once.
    """

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        self.levels = [ROOT]
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0, 1] = 1.0
        # For each limit, the level of each node in the order of falling value.
        self._orders = [np.zeros(1, np.int64)]
        values = ROOT.values
        for depth, rates in enumerate(table, start=1):
            level = next_level(self.levels[-1], rates, max_size)
            self.levels.append(level)
            values = np.concatenate((values, level.values))
            order = np.argsort(-values, kind="stable")[:max_size]
            values = values[order]
            deepest = np.full(len(level.values), depth)
            self._orders.append(np.concatenate((self._orders[-1], deepest))[order])
            self.expected[depth, 1 : len(values) + 1] = np.cumsum(values)

    def _counts(self, depth: int) -> IntArray:
        """[nodes + 1, depth + 1]: nodes on each level of the tree of each size."""
        found = self._orders[depth]
        counts = np.zeros((len(found) + 1, depth + 1), np.int64)
        counts[np.arange(1, len(found) + 1), found] = 1
        return np.cumsum(counts, axis=0)

    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""
        max_depth, columns = len(self.levels) - 1, self.expected.shape[1]
        # A node is internal once its first child is there, the elder of all its siblings.
        internal = [np.append(0, np.cumsum(level.ranks == 1)) for level in self.levels]
        widths = np.zeros((max_depth + 1, columns, max_depth), np.int64)
        for depth in range(1, max_depth + 1):
            counts = self._counts(depth)
            for level in range(1, depth + 1):
                widths[depth, : len(counts), level - 1] = internal[level][counts[:, level]]
        return widths

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`."""
        return tree_of(self.levels, np.bincount(self._orders[depth][:size]))


class DynamicProgramme(Family):
    """E*(n, D) for any rates, also ones that rise with the rank.

    With F(m, a, b) the most tokens of a tree of m nodes whose root is at depth a and may have b
    more levels below it, and G(m, k) that of m nodes shared among its children from rank k on:

        F(m, a, b) = 1 + G(m - 1, 1)
        G(m, k)    = max over j ≥ 1 of p[a + 1][k] F(j, a + 1, b - 1) + G(m - j, k + 1)
        G(0, k)    = 0

    Past the last depth at which the rates change, F does not depend on a: with one vector for
    all depths that is one programme for all limits. Once a level more changes no F, none does:
    the best trees need a few levels only. O(n² W) for each F.
    """

    def __init__(self, table: FloatArray, max_size: int) -> None:
        """Solve for the rates `table` [max_depth, W], depth 1 first."""
        max_depth = len(table)
        changes = np.flatnonzero((table[1:] != table[:-1]).any(axis=1))
        last = int(changes[-1]) + 1 if len(changes) else 0  # the first of the rows that repeat
        self._table, self._size, self._last = table, max_size, last
        self._deepest = 0  # the limit past which nothing changes
        # By (a, b): what each G(m, k) chose, [W, m]; internal nodes on each level, [m, b].
        self._choices: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._widths: dict[tuple[int, int], IntArray] = {}
        leaf = np.full(max_size + 1, -np.inf)
        leaf[1] = 1.0
        best = dict.fromkeys(range(last + 1), leaf)
        self._widths = {(a, 0): np.zeros((max_size + 1, 0), np.int64) for a in best}
        self.expected = np.full((max_depth + 1, max_size + 1), np.nan)
        self.expected[0] = leaf
        for below in range(1, max_depth + 1):
            # Depth a with `below` levels left is met only under a limit of a + below levels.
            depths = range(min(last, max_depth - below) + 1)
            found = {a: self._solve(a, below, best[min(a + 1, last)]) for a in depths}
            if all(np.array_equal(found[a], best[a]) for a in depths):
                self.expected[below:] = best[0]
                break
            best = found
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
        share = np.full(size, -np.inf)  # G of the rank after
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
        found = np.full(size + 1, -np.inf)
        found[1:] = 1.0 + share
        own = (np.arange(size + 1) > 1).astype(np.int64)
        under = np.vstack((widths[:1], widths))
        self._widths[depth, below] = np.column_stack((own, under))
        return found

    def widths(self) -> IntArray:
        """Internal nodes on each level of each tree, [max_depth + 1, max_size + 1, max_depth]."""
        max_depth = len(self._table)
        widths = np.zeros((*self.expected.shape, max_depth), np.int64)
        for depth in range(1, max_depth + 1):
            found = self._widths[0, min(depth, self._deepest)]
            widths[depth, :, : found.shape[1]] = found
        return widths

    def tree(self, size: int, depth: int) -> TokenTree:
        """The best tree of `size` nodes and depth at most `depth`: the choices, walked down."""
        parents, ranks = [-1], [0]
        level = [size]  # nodes of the subtree at each node of a depth
        first = 0  # the first of them
        for above, below in enumerate(range(min(depth, self._deepest), 0, -1)):
            choices = self._choices[min(above, self._last), below]
            under: list[int] = []
            for node, nodes in enumerate(level, start=first):
                left, rank = nodes - 1, 0
                while left:
                    under.append(choices.item(rank, left))
                    left -= under[-1]
                    rank += 1
                    parents.append(node)
                    ranks.append(rank)
            first += len(level)
            level = under
        return TokenTree(parents, ranks)


def best_trees(table: FloatArray, max_size: int) -> Family:
    """E*(n, D) for the rates `table` [max_depth, W]: best-first where exact, else the programme."""
    if (np.diff(table, axis=1) <= 0).all():
        return BestFirst(table, max_size)
    return DynamicProgramme(table, max_size)
