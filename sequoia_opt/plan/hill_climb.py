"""The fastest tree for rates that rise with the rank somewhere.

There the best nodes under caps are no tree. Falling rates near the real ones say which widths
are worth a start; from there single trees are changed step by step: siblings move, whole levels
become narrower. Slower than search.py. Knows tokens and times, nothing of their evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sequoia_opt.plan.cap_search import SAME, BoolArray, CapSearch
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.step_times import Objective
from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.types import FloatArray

LARGEST_CLIMB = 128  # nodes; its time grows with their square
TOGETHER = 4  # siblings that come or go at once
HOPE = 0.8  # of the best speed beside it a tree needs to be climbed from
NARROWED = 2  # of the trees that climbing ends at, those whose levels are narrowed


def capped(
    table: FloatArray, depths: Sequence[int], objective: Objective, allowed: BoolArray
) -> list[TokenTree]:
    """Trees that are fast if the rates `table` [max_depth, W] are taken for falling ones.

    Pooled rates say how many children a node is worth, sorted ones what its best are worth.

    Args:
        depths: limits to start from, the most promising first.
    """
    return [
        arranged(table, tree)
        for falling in (pooled(table), -np.sort(-table, axis=1))
        for tree in CapSearch(falling, objective, allowed).run(depths)
    ]


def pooled(table: FloatArray) -> FloatArray:
    """Falling rates: ranks of `table` [depth, W] that pay only together get their mean.

    Their sums over the first ranks are the least concave ones that are nowhere below the real.
    """
    found = np.empty_like(table)
    for row, rates in enumerate(table):
        start = 0
        while start < len(rates):
            means = np.cumsum(rates[start:]) / np.arange(1, len(rates) - start + 1)
            end = start + int(means.argmax()) + 1
            found[row, start:end] = means.max()
            start = end
    return found


def arranged(table: FloatArray, tree: TokenTree) -> TokenTree:
    """The best tree with the same numbers of children on each level, and so size and widths.

    The most children go to the most valuable node. Exchanging two nodes' numbers of children so
    lets none of the values one level down fall, taken in order, and hence none further down.
    """
    values, arranged_counts = np.ones(1), []
    for rates, level in zip(table, tree.levels[:-1], strict=False):
        counts = np.zeros(len(level), np.int64)
        counts[np.argsort(-values, kind="stable")] = -np.sort(-tree.child_counts[level])
        arranged_counts.append(counts)
        above, own = _children(counts)
        values = values[above] * rates[own - 1]
    return _tree_of(np.concatenate([*arranged_counts, np.zeros(len(values), np.int64)]))


def climb_from(
    table: FloatArray, starts: Sequence[TokenTree], objective: Objective, allowed: BoolArray
) -> list[TokenTree]:
    """Trees for any rates: climb from each start, and from the best peaks narrow a level and
    climb again, as long as that gains. Trees that are too large to climb from stay as they are.

    Args:
        starts: trees that the profile can price.

    Returns:
        The trees at the end of the ascents that gained.
    """

    def speed(tree: TokenTree) -> float:
        depths, values = _depths_and_values(table, tree.child_counts)
        widths = np.bincount(depths[tree.child_counts > 0], minlength=len(table) + 1)
        rest_ms = objective.rest_ms(np.array(tree.size))
        return float(values.sum() / (rest_ms + _levels_ms(objective, widths).sum()))

    def climbed(trees: Iterable[TokenTree]) -> list[TokenTree]:
        speeds = {tree: speed(tree) for tree in trees if allowed[tree.size]}
        least = HOPE * max(speeds.values(), default=0.0)
        close = [tree for tree, own in speeds.items() if own > least]
        return [climb(table, tree, objective, allowed) for tree in close]

    peaks = climbed(start for start in starts if start.size <= LARGEST_CLIMB)
    for peak in sorted(dict.fromkeys(peaks), key=speed, reverse=True)[:NARROWED]:
        best, improved = peak, True
        while improved:
            narrowed = [
                narrow(table, best, level, cap)
                for level, width in enumerate(draft_passes(best)[1:], start=1)
                for cap in (0, *objective.narrower(width))
            ]
            better = max(climbed(narrowed), key=speed, default=best)
            improved = speed(better) > speed(best) * (1 + SAME)
            if improved:
                best = better
                peaks.append(best)
    return [*peaks, *(start for start in starts if start.size > LARGEST_CLIMB)]


def narrow(table: FloatArray, tree: TokenTree, level: int, cap: int) -> TokenTree:
    """The tree with only `cap` internal nodes on a level, as large as it was if it can be.

    What is under the others goes; as many nodes come elsewhere, siblings together where they
    bring most on average.
    """
    ranks = table.shape[1]
    sums = np.pad(np.cumsum(table, axis=1), ((0, 1), (1, 0)))
    _, values = _depths_and_values(table, tree.child_counts)
    under = tree.ancestor_mask.T.astype(float) @ values - values  # what is under each node
    ordered = sorted(tree.internal_levels[level], key=lambda node: -under[node])
    gone: BoolArray = np.asarray(tree.ancestor_mask[:, ordered[cap:]].any(axis=1))
    gone[ordered[cap:]] = False
    kept = np.flatnonzero(~gone)
    place = {int(node): new for new, node in enumerate(kept)}
    parents = [-1, *(place[tree.parents[node]] for node in kept[1:])]
    own = [tree.ranks[node] for node in kept]
    depths, worth = tree.depths[kept].tolist(), values[kept].tolist()
    counts = np.bincount(parents[1:], minlength=tree.size)
    together = np.arange(1, ranks + 1)
    while (room := tree.size - len(parents)) > 0:
        depth, count = np.array(depths), counts[: len(parents)]
        full = (depth == level) & (count == 0)
        comes = np.minimum(np.where(full | (depth >= len(table)), 0, ranks - count), room)
        ends = np.minimum(count[:, None] + together, ranks)
        gains = (
            np.array(worth)[:, None]
            * (sums[depth][np.arange(len(depth))[:, None], ends] - sums[depth, count][:, None])
            / together
        )
        gains[together > comes[:, None]] = -1.0
        node, more = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[node, more] < 0:
            break
        for rank in range(int(count[node]) + 1, int(count[node]) + int(more) + 2):
            parents.append(int(node))
            own.append(rank)
            depths.append(depths[node] + 1)
            worth.append(worth[node] * table[depths[node], rank - 1])
        counts[node] += int(more) + 1
    return TokenTree.from_any_order(parents, own)


def climb(
    table: FloatArray, tree: TokenTree, objective: Objective, allowed: BoolArray
) -> TokenTree:
    """Steepest ascent from `tree` by moving, adding or removing siblings, for any rates.

    Where rates rise with the rank a single node may pay only together with its next sibling;
    so up to `TOGETHER` leaves under one node go, or come, at once.

    Args:
        table: rates [max_depth, W], depth 1 first.
        tree: of an allowed size, and one that the profile can price.
        allowed: which sizes the tree may have, [max_size + 1].
    """
    max_depth, ranks = table.shape
    # Sums of rates from the first rank on; no child past the last depth.
    sums = np.pad(np.cumsum(table, axis=1), ((0, 1), (1, 0)))
    every = np.arange(len(allowed) + TOGETHER)
    rest_ms = np.where(np.append(allowed, [False] * TOGETHER), objective.rest_ms(every), np.inf)
    together = np.arange(1, TOGETHER + 1)
    counts = tree.child_counts.copy()
    while True:
        size, (depths, values) = len(counts), _depths_and_values(table, counts)
        end = 1 + np.cumsum(counts)  # behind each node's last child
        # Options: a node, and how many of its last children go, or of its next ones come.
        leaves = counts[np.clip(end[:, None] - together, 0, size - 1)] == 0
        goes = np.logical_and.accumulate(leaves & (together <= counts[:, None]), axis=1)
        comes = (depths[:, None] < max_depth) & (together <= ranks - counts[:, None])
        # The last option of each changes nothing.
        out, fewer = (np.append(of, 0) for of in np.nonzero(goes))
        into, more = (np.append(of, 0) for of in np.nonzero(comes))
        fewer[:-1] += 1
        more[:-1] += 1

        kept, wanted = counts[out] - fewer, counts[into] + more
        lost = values[out] * (sums[depths[out], counts[out]] - sums[depths[out], kept])
        gained = values[into] * (sums[depths[into], wanted] - sums[depths[into], counts[into]])
        expected = values.sum() - lost[:, None] + gained[None, :]
        sizes = size - fewer[:, None] + more[None, :]
        widths = np.bincount(depths[counts > 0], minlength=max_depth + 1)
        now, narrower, wider = (_levels_ms(objective, widths + by) for by in (0, -1, 1))
        emptied, opened = (fewer > 0) & (kept == 0), (more > 0) & (counts[into] == 0)
        saved = np.where(emptied, (narrower - now)[depths[out]], 0.0)
        spent = np.where(opened, (wider - now)[depths[into]], 0.0)
        levels = now.sum() + saved[:, None] + spent[None, :]
        same = depths[out][:, None] == depths[into][None, :]
        levels[emptied[:, None] & opened[None, :] & same] = now.sum()
        speeds = expected / (rest_ms[sizes] + levels)
        # What goes cannot have children come, nor its parent get the ranks that it leaves.
        first_gone, behind = (end[out] - fewer)[:, None], end[out][:, None]
        going = (first_gone <= into) & (into < behind) | (into == out[:, None])
        speeds[going & (fewer[:, None] > 0) & (more > 0)] = -1.0
        best = np.unravel_index(int(speeds.argmax()), speeds.shape)
        if speeds[best] <= speeds[-1, -1] * (1 + 1e-12):
            return _tree_of(counts)
        left, right = best
        counts[out[left]] -= fewer[left]
        counts[into[right]] += more[right]
        counts[first_gone[left, 0] : end[out[left]]] = -1
        counts = np.insert(counts, end[into[right]], np.zeros(more[right], np.int64))
        counts = counts[counts >= 0]


def _children(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Parents and ranks of the nodes that come, in breadth-first order, of child counts."""
    parents = np.repeat(np.arange(len(counts)), counts)
    return parents, np.arange(len(parents)) - (np.cumsum(counts) - counts)[parents] + 1


def _tree_of(counts: IntArray) -> TokenTree:
    """The tree with these numbers of children, in breadth-first order."""
    parents, ranks = _children(counts)
    return TokenTree([-1, *parents.tolist()], [0, *ranks.tolist()])


def _depths_and_values(table: FloatArray, counts: IntArray) -> tuple[IntArray, FloatArray]:
    """Depth and path probability of each node, from the numbers of children."""
    depths, values = np.zeros(len(counts), np.int64), np.ones(len(counts))
    parents, ranks = _children(counts)
    first, end = 0, 1  # of a level
    while (last := end + int(counts[first:end].sum())) > end:
        level = slice(end, last)
        above = slice(end - 1, last - 1)  # of the same nodes, the root left out
        depths[level] = depths[first] + 1
        values[level] = values[parents[above]] * table[depths[first], ranks[above] - 1]
        first, end = end, last
    return depths, values


def _levels_ms(objective: Objective, widths: IntArray) -> FloatArray:
    """Median of each draft level, by its internal nodes."""
    first, others = np.maximum(widths[:1], 0), np.maximum(widths[1:], 0)
    return np.concatenate((objective.level_ms(first, True), objective.level_ms(others, False)))
