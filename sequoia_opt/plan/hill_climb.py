"""Search for the fastest tree where rates rise with the rank somewhere.

With such rates the best nodes under caps need not form a tree. Falling rates near the real ones
say which widths are worth a start. From there single trees are changed step by step: siblings
move, whole levels become narrower. Slower than `cap_search`. Knows tokens and times, nothing of
how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sequoia_opt.plan.cap_search import TIE, CapSearch
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import BoolArray, IntArray, TokenTree
from sequoia_opt.types import FloatArray

MAX_CLIMB_SIZE = 128  # nodes; the time of a climb grows with their square
SIBLINGS_MOVED = 4  # most siblings that one step adds or removes
WORTH_CLIMBING = 0.8  # of the best speed among the trees to climb from
NARROWED_PEAKS = 2  # peaks whose levels are narrowed


def starting_trees(
    table: FloatArray, depths: Sequence[int], times: StepTimes, allowed: BoolArray
) -> list[TokenTree]:
    """Trees to climb from: fast ones for falling rates near `table` [max_depth, W].

    Pooled rates say how many children a node is worth, sorted ones how much its best are worth.

    Args:
        depths: limits to start from, the most promising first.
        allowed: sizes that a tree may have, [max_size + 1].
    """
    return [
        arranged(table, tree)
        for falling in (pooled(table), -np.sort(-table, axis=1))
        for tree in CapSearch(falling, times, allowed).run(depths)
    ]


def pooled(table: FloatArray) -> FloatArray:
    """Falling rates [depth, W]: ranks of `table` that pay only together get their mean.

    Their sums over the first ranks are the least concave sums that never fall below the real
    ones.
    """
    pooled_table = np.empty_like(table)
    for row, rates in enumerate(table):
        start = 0
        while start < len(rates):
            means = np.cumsum(rates[start:]) / np.arange(1, len(rates) - start + 1)
            end = start + int(means.argmax()) + 1
            pooled_table[row, start:end] = means.max()
            start = end
    return pooled_table


def arranged(table: FloatArray, tree: TokenTree) -> TokenTree:
    """The tree of most tokens with the same numbers of children on each level as `tree`.

    It has the same size and widths. The most children go to the most valuable node: exchanging
    the children of two nodes in this way lowers none of the values one level down, taken in
    order, and hence none further down.
    """
    values, arranged_counts = np.ones(1), []
    for rates, level in zip(table, tree.levels[:-1], strict=False):
        counts = np.zeros(len(level), np.int64)
        counts[np.argsort(-values, kind="stable")] = -np.sort(-tree.child_counts[level])
        arranged_counts.append(counts)
        parents, ranks = _children(counts)
        values = values[parents] * rates[ranks - 1]
    return _tree_of(np.concatenate([*arranged_counts, np.zeros(len(values), np.int64)]))


def climb_from(
    table: FloatArray, starts: Sequence[TokenTree], times: StepTimes, allowed: BoolArray
) -> list[TokenTree]:
    """Climb from each start; then narrow levels of the best peaks and climb again while it gains.

    Starts that are too large to climb from are returned as they are.

    Args:
        table: rates [max_depth, W].
        starts: trees that the profile can price.
        allowed: sizes that a tree may have, [max_size + 1].

    Returns:
        The peaks, and the starts that are too large.
    """

    def speed(tree: TokenTree) -> float:
        depths, values = _depths_and_values(table, tree.child_counts)
        widths = np.bincount(depths[tree.child_counts > 0], minlength=len(table) + 1)
        step_ms = times.rest_ms(np.array(tree.size)) + times.levels_ms(widths).sum()
        return float(values.sum() / step_ms)

    def climbed(trees: Iterable[TokenTree]) -> list[TokenTree]:
        speeds = {tree: speed(tree) for tree in trees if allowed[tree.size]}
        least = WORTH_CLIMBING * max(speeds.values(), default=0.0)
        close = [tree for tree, tree_speed in speeds.items() if tree_speed > least]
        return [climb(table, tree, times, allowed) for tree in close]

    peaks = climbed(start for start in starts if start.size <= MAX_CLIMB_SIZE)
    for peak in sorted(dict.fromkeys(peaks), key=speed, reverse=True)[:NARROWED_PEAKS]:
        best, improved = peak, True
        while improved:
            narrower = [
                narrowed(table, best, level, cap)
                for level, width in enumerate(draft_passes(best)[1:], start=1)
                for cap in (0, *times.narrower_widths(width))
            ]
            fastest = max(climbed(narrower), key=speed, default=best)
            improved = speed(fastest) > speed(best) * (1 + TIE)
            if improved:
                best = fastest
                peaks.append(best)
    return [*peaks, *(start for start in starts if start.size > MAX_CLIMB_SIZE)]


def narrowed(table: FloatArray, tree: TokenTree, level: int, cap: int) -> TokenTree:
    """The tree with at most `cap` internal nodes on a level, of the same size where possible.

    The descendants of the level's other nodes are removed. As many nodes are added elsewhere,
    siblings together, where they bring most tokens per node.
    """
    ranks = table.shape[1]
    sums = np.pad(np.cumsum(table, axis=1), ((0, 1), (1, 0)))
    _, all_values = _depths_and_values(table, tree.child_counts)
    below = tree.ancestor_mask.T.astype(float) @ all_values - all_values  # each node's descendants
    closed = sorted(tree.internal_levels[level], key=lambda node: -below[node])[cap:]
    removed: BoolArray = np.asarray(tree.ancestor_mask[:, closed].any(axis=1))
    removed[closed] = False
    remaining = np.flatnonzero(~removed)
    position = {int(node): new for new, node in enumerate(remaining)}
    tree_parents = [-1, *(position[tree.parents[node]] for node in remaining[1:])]
    tree_ranks = [tree.ranks[node] for node in remaining]
    depths, values = tree.depths[remaining].tolist(), all_values[remaining].tolist()
    counts = np.bincount(tree_parents[1:], minlength=tree.size)
    together = np.arange(1, ranks + 1)
    while (room := tree.size - len(tree_parents)) > 0:
        depth, count = np.array(depths), counts[: len(tree_parents)]
        is_closed = (depth == level) & (count == 0)
        most = np.where(is_closed | (depth >= len(table)), 0, ranks - count)
        most = np.minimum(most, room)
        ends = np.minimum(count[:, None] + together, ranks)
        gains = (
            np.array(values)[:, None]
            * (sums[depth][np.arange(len(depth))[:, None], ends] - sums[depth, count][:, None])
            / together
        )
        gains[together > most[:, None]] = -1.0
        node, more = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[node, more] < 0:
            break
        for rank in range(int(count[node]) + 1, int(count[node]) + int(more) + 2):
            tree_parents.append(int(node))
            tree_ranks.append(rank)
            depths.append(depths[node] + 1)
            values.append(values[node] * table[depths[node], rank - 1])
        counts[node] += int(more) + 1
    return TokenTree.from_any_order(tree_parents, tree_ranks)


def climb(table: FloatArray, tree: TokenTree, times: StepTimes, allowed: BoolArray) -> TokenTree:
    """Steepest ascent from `tree` by moving, adding or removing siblings, for any rates.

    Where rates rise with the rank a single node may pay only together with its next sibling; so
    one step removes up to `SIBLINGS_MOVED` leaves of one node and adds as many to another.

    Args:
        table: rates [max_depth, W], depth 1 first.
        tree: the start: of an allowed size, and one that the profile can price.
        allowed: sizes that the tree may have, [max_size + 1].
    """
    max_depth, ranks = table.shape
    # Sums of rates from the first rank on; no child past the last depth.
    sums = np.pad(np.cumsum(table, axis=1), ((0, 1), (1, 0)))
    all_sizes = np.arange(len(allowed) + SIBLINGS_MOVED)
    may_have = np.append(allowed, [False] * SIBLINGS_MOVED)
    rest_ms = np.where(may_have, times.rest_ms(all_sizes), np.inf)
    together = np.arange(1, SIBLINGS_MOVED + 1)
    counts = tree.child_counts.copy()
    while True:
        size, (depths, values) = len(counts), _depths_and_values(table, counts)
        end = 1 + np.cumsum(counts)  # one past each node's last child
        # Options: a node, and how many of its last children go, or of its next ones come.
        leaves = counts[np.clip(end[:, None] - together, 0, size - 1)] == 0
        goes = np.logical_and.accumulate(leaves & (together <= counts[:, None]), axis=1)
        comes = (depths[:, None] < max_depth) & (together <= ranks - counts[:, None])
        # The last option of each kind changes nothing.
        out, fewer = (np.append(indices, 0) for indices in np.nonzero(goes))
        into, more = (np.append(indices, 0) for indices in np.nonzero(comes))
        fewer[:-1] += 1
        more[:-1] += 1

        counts_out, counts_into = counts[out] - fewer, counts[into] + more
        lost = values[out] * (sums[depths[out], counts[out]] - sums[depths[out], counts_out])
        gained = values[into] * (sums[depths[into], counts_into] - sums[depths[into], counts[into]])
        expected = values.sum() - lost[:, None] + gained[None, :]
        sizes = size - fewer[:, None] + more[None, :]
        widths = np.bincount(depths[counts > 0], minlength=max_depth + 1)
        now, narrower, wider = (
            times.levels_ms(np.maximum(widths + change, 0)) for change in (0, -1, 1)
        )
        emptied, opened = (fewer > 0) & (counts_out == 0), (more > 0) & (counts[into] == 0)
        saved = np.where(emptied, (narrower - now)[depths[out]], 0.0)
        spent = np.where(opened, (wider - now)[depths[into]], 0.0)
        levels = now.sum() + saved[:, None] + spent[None, :]
        same_level = depths[out][:, None] == depths[into][None, :]
        levels[emptied[:, None] & opened[None, :] & same_level] = now.sum()
        speeds = expected / (rest_ms[sizes] + levels)
        # A node that goes gets no children, and its parent not the ranks that it leaves.
        first_gone, past_gone = (end[out] - fewer)[:, None], end[out][:, None]
        going = (first_gone <= into) & (into < past_gone) | (into == out[:, None])
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
    """Parents and ranks of all nodes but the root, in breadth-first order, from child counts."""
    parents = np.repeat(np.arange(len(counts)), counts)
    return parents, np.arange(len(parents)) - (np.cumsum(counts) - counts)[parents] + 1


def _tree_of(counts: IntArray) -> TokenTree:
    """The tree with these numbers of children, in breadth-first order."""
    parents, ranks = _children(counts)
    return TokenTree([-1, *parents.tolist()], [0, *ranks.tolist()])


def _depths_and_values(table: FloatArray, counts: IntArray) -> tuple[IntArray, FloatArray]:
    """Depth and path probability of each node, [nodes] both, from the numbers of children."""
    depths, values = np.zeros(len(counts), np.int64), np.ones(len(counts))
    parents, ranks = _children(counts)
    first, end = 0, 1  # of a level
    while (last := end + int(counts[first:end].sum())) > end:
        level = slice(end, last)
        without_root = slice(end - 1, last - 1)  # the same nodes in `parents` and `ranks`
        depths[level] = depths[first] + 1
        values[level] = (
            values[parents[without_root]] * table[depths[first], ranks[without_root] - 1]
        )
        first, end = end, last
    return depths, values
