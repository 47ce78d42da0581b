"""Search for trees that are faster than those of most tokens, for rates that fall with the rank.

E*(n, D) spends nodes where they bring most tokens. A tree with fewer internal nodes on some
level can still be faster: the cost of a draft level depends on its own width, and where latency
climbs in steps, one node less may save a step. `hill_climb` searches for any other rates. Knows
tokens and times, nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sequoia_opt.plan.best_trees import ROOT, BestNodes, best_children, tree_of
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import BoolArray, IntArray, TokenTree
from sequoia_opt.types import FloatArray

TIE = 1e-9  # relative difference below which two values count as equal
WORTH_ASCENDING = 0.7  # of the best speed so far: an ascent has gained a quarter
EXTRA_DEPTH = 3  # levels below the deepest start that trees may reach: more levels cost time
EVEN_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
EVEN_STARTS = 2  # starts that have one width for all levels
SIZE_REACH = 16  # nodes that one move may add or remove, or a third of the tree if that is more
NODES_AT_ONCE = 2**12  # nodes of all trees that are grown together


@dataclass(frozen=True)
class CappedTrees:
    """The trees of most tokens with capped numbers of internal nodes on each level, by size.

    Where rates fall with the rank, the internal nodes of a level are its most valuable ones:
    exchanging the subtrees of two nodes, the larger one to the more valuable node, never loses
    tokens. So growing best-first, with the widths of any tree as caps, gives a tree of the same
    size and widths with no fewer tokens: only caps and size have to be searched.

    Attributes:
        nodes_by_depth: the best nodes of each depth.
        order: the depth of each node, in the order of falling value, [nodes].
        expected: E of the trees of the first 1, 2, … nodes, [nodes].
        widths: internal nodes on each level of these trees, [nodes, levels].
    """

    nodes_by_depth: list[BestNodes]
    order: IntArray
    expected: FloatArray
    widths: IntArray

    def tree(self, size: int) -> TokenTree:
        """The tree of the first `size` nodes."""
        return tree_of(self.nodes_by_depth, np.bincount(self.order[:size]))


def grow(table: FloatArray, caps: Sequence[int], max_size: int) -> CappedTrees:
    """Grow trees best-first, with caps on the internal nodes of each level.

    Args:
        table: rates [depth, W] that fall with the rank.
        caps: most internal nodes on each level, [depth].
        max_size: nodes of the largest tree.
    """
    nodes_by_depth = [ROOT]
    for rates, cap in zip(table, caps, strict=True):
        if cap == 0:
            break
        internal = nodes_by_depth[-1].first(cap)
        nodes_by_depth.append(best_children(internal, rates, max_size))
    values = np.concatenate([nodes.values for nodes in nodes_by_depth])
    counts = [len(nodes.values) for nodes in nodes_by_depth]
    depths = np.repeat(np.arange(len(nodes_by_depth)), counts)
    order = np.argsort(-values, kind="stable")[:max_size]
    depths = depths[order]
    first_child = np.concatenate([nodes.ranks == 1 for nodes in nodes_by_depth])[order]
    widths = np.zeros((len(order), len(table)), np.int64)
    widths[np.flatnonzero(first_child), depths[first_child] - 1] = 1
    return CappedTrees(nodes_by_depth, depths, np.cumsum(values[order]), np.cumsum(widths, axis=0))


def grow_many(
    table: FloatArray, caps: IntArray, least_size: int, max_size: int
) -> tuple[FloatArray, IntArray]:
    """The tokens and widths of `grow` for many rows of caps at once.

    Children that are worth less than `max_size` nodes higher up are dropped at once. So few are
    left that the work grows with the sizes, not with the ranks.

    Args:
        table: rates [depth, W] without equal products, see `without_ties`.
        caps: [rows, depth].

    Returns:
        E of the first `least_size` to `max_size` nodes, [rows, sizes], NaN where there are fewer
        nodes; and the internal nodes on each level of these trees, [rows, sizes, levels], for as
        many levels as have any.
    """
    nodes = np.ones((len(caps), 1))  # values of the nodes of one depth, falling
    largest = np.zeros((len(caps), max_size))  # the largest values of all depths so far, falling
    largest[:, 0] = 1.0
    values = [largest.copy()]  # of all depths, unsorted
    opened = [np.full(max_size, -1)]  # the level whose width each node adds 1 to; -1 for none
    for depth, (rates, cap) in enumerate(zip(table, caps.T, strict=True)):
        nodes = nodes[:, : int(cap.max())]
        nodes = np.where(np.arange(nodes.shape[1]) < cap[:, None], nodes, 0.0)
        least = np.maximum(largest[:, -1:], np.finfo(float).tiny)
        parents, ranks = np.nonzero((nodes / least).max(axis=0)[:, None] * rates >= 1)
        if not len(parents):
            break
        children = nodes[:, parents] * rates[ranks]
        children[children < least] = 0.0
        values.append(children)
        opened.append(np.where(ranks == 0, depth, -1))
        nodes = _falling(children)[:, :max_size]
        nodes = nodes[:, : int(np.count_nonzero(nodes, axis=1).max())]
        largest = _falling(np.concatenate((largest, nodes), axis=1))[:, :max_size]
    order = np.argsort(-np.concatenate(values, axis=1), axis=1)[:, :max_size]
    levels = np.concatenate(opened)[order][..., None] == np.arange(max(1, len(values) - 1))
    widths = np.cumsum(levels, axis=1)
    expected = np.where(largest > 0, np.cumsum(largest, axis=1), np.nan)
    return expected[:, least_size - 1 :], widths[:, least_size - 1 :]


def _falling(values: FloatArray) -> FloatArray:
    """Each row sorted, the largest value first."""
    return -np.sort(-values, axis=1)


def without_ties(table: FloatArray) -> FloatArray:
    """Rates that differ by less than `TIE` from `table` [depth, W] and have no equal products.

    With them the value of a node alone decides whether it is among the best n. Equal rates now
    fall with the rank, and equal values mostly from children of elder nodes to those of younger
    ones; no rate is 0 or 1.
    """
    depth, ranks = table.shape
    depths, places = np.arange(1, depth + 1)[:, None], np.arange(1, ranks + 1)
    shifts = depths / places + depth * places
    shifts += np.random.default_rng(0).random(table.shape) / 10
    return np.asarray(np.clip(table, TIE / 1000, 1.0) * (1 - TIE * shifts / (shifts.max() + 1)))


def may_be_faster(
    expected: FloatArray, times: StepTimes, best: float, allowed: BoolArray
) -> BoolArray:
    """Depths and sizes [depth + 1, size + 1] at which a tree may be faster than `best`.

    No tree of n nodes and depth D has more tokens than E*(n, D), and none of its levels costs
    less than the cheapest width. Where draft passes cost the same at every width, and every
    depth is allowed, no depth and size is left.

    Args:
        expected: E*(n, D), [depth + 1, size + 1].
        best: the highest speed so far, tokens per ms.
        allowed: sizes that a tree may have, [size + 1].
    """
    depth, sizes = len(expected) - 1, np.arange(expected.shape[1])
    widths = np.tile(sizes[1:, None], (1, depth))
    widths[:, :1] = 1  # the root
    cheapest = times.levels_ms(widths).min(axis=0, initial=np.inf)
    drafting = np.concatenate(([0.0], np.cumsum(cheapest)))
    least_ms = times.rest_ms(sizes) + drafting[:, None]
    # Overheads may be fitted below 0; if they leave no time at all, the bound says nothing.
    return np.asarray(((expected > best * (1 + TIE) * least_ms) | (least_ms <= 0)) & allowed)


@dataclass(frozen=True)
class PricedCaps:
    """The fastest tree under some caps.

    Attributes:
        speed: tokens per ms.
        size: its nodes.
        widths: internal nodes on each of its levels.
        caps: the caps that it was grown under.
    """

    speed: float
    size: int
    widths: tuple[int, ...]
    caps: tuple[int, ...]


class CapSearch:
    """Steepest ascent over caps, from the best tree of several depths."""

    def __init__(self, table: FloatArray, times: StepTimes, allowed: BoolArray) -> None:
        """Search the trees of some rates.

        Args:
            table: rates [max_depth, W] that fall with the rank.
            times: the time of a step.
            allowed: sizes that a tree may have, [max_size + 1].
        """
        self._table, self._times, self._allowed = without_ties(table), times, allowed
        self._size = int(np.flatnonzero(allowed)[-1])
        self._uncapped: tuple[int, ...] = ()  # caps of levels that a move does not hold
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}  # the sizes that were priced

    def run(self, depths: Sequence[int]) -> list[TokenTree]:
        """The trees at the end of the ascents, the fastest first.

        Starts with depth limits alone, and with one width for all levels: where latency rises
        steeply at some width, going below it on one level alone gains nothing.

        Args:
            depths: limits to start from, the most promising first.
        """
        deepest = min(max(depths) + EXTRA_DEPTH, len(self._table))
        self._uncapped = self._even_caps(self._size, deepest)
        limited = self._starts(self._even_caps(self._size, depth) for depth in (deepest, *depths))
        widest = max((max(start.widths) for start in limited), default=self._size)
        narrow = self._starts(
            self._even_caps(width, len(self._table)) for width in EVEN_WIDTHS if width < widest
        )
        peaks: list[PricedCaps] = []
        for start in sorted((*limited, *narrow[:EVEN_STARTS]), key=lambda start: -start.speed):
            if not peaks or start.speed > WORTH_ASCENDING * max(peak.speed for peak in peaks):
                peaks.append(self._ascend(start))
        peaks.sort(key=lambda peak: (-peak.speed, peak.size))
        trees = dict.fromkeys(
            grow(self._table, peak.caps, self._size).tree(peak.size) for peak in peaks
        )
        return list(trees)

    def _starts(self, caps: Iterable[tuple[int, ...]]) -> list[PricedCaps]:
        """The fastest tree under each of the caps, the fastest first, each tree once.

        Plain decoding is no start: where speculation pays little, nothing near it is faster.
        """
        priced = self._evaluate(caps, range(min(2, self._size), self._size + 1))
        distinct = {(start.size, start.widths): start for start in reversed(priced)}
        return sorted(distinct.values(), key=lambda start: -start.speed)

    def _even_caps(self, width: int, depth: int) -> tuple[int, ...]:
        return (width,) * depth + (0,) * (len(self._table) - depth)

    def _ascend(self, start: PricedCaps) -> PricedCaps:
        """Change the cap of one level at a time, always to the fastest neighbour."""
        best, improved = start, True
        while improved:
            improved = False
            reach = max(SIZE_REACH, best.size // 3)
            sizes = range(max(1, best.size - reach), min(best.size + reach, self._size) + 1)
            moves = [c for base in (best.widths, best.caps) for c in self._moves(best.widths, base)]
            neighbours = self._evaluate(moves, sizes)
            fastest = max(neighbours, key=lambda neighbour: neighbour.speed, default=best)
            if fastest.speed > best.speed * (1 + TIE):
                best, improved = fastest, True
        return best

    def _moves(self, widths: Sequence[int], base: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Caps near `base`: with at most one level changed, those below it held or uncapped."""
        yield tuple(base)
        for level, width in enumerate(widths[1:], start=1):
            none = (0,) * (len(widths) - level)
            if width:
                for cap in (width + 1, *self._times.narrower_widths(width)):
                    yield (*base[:level], cap, *base[level + 1 :])
                    yield (*base[:level], cap, *self._uncapped[level + 1 :])
                yield (*base[:level], *none)
            else:  # one level deeper
                if widths[level - 1]:
                    yield (*base[:level], 1, *none[1:])
                break

    def _evaluate(self, caps: Iterable[tuple[int, ...]], sizes: range) -> list[PricedCaps]:
        """The fastest tree of the sizes under each of the caps that were not priced before."""
        ends = sizes[0], sizes[-1]
        new = [
            c
            for c in dict.fromkeys(caps)
            if c not in self._seen or not self._seen[c][0] <= ends[0] <= ends[1] <= self._seen[c][1]
        ]
        self._seen.update(dict.fromkeys(new, ends))
        rows = max(1, NODES_AT_ONCE // sizes[-1])
        return [
            priced
            for start in range(0, len(new), rows)
            for priced in self._fastest_sizes(new[start : start + rows], sizes)
        ]

    def _fastest_sizes(self, caps: Sequence[tuple[int, ...]], sizes: range) -> list[PricedCaps]:
        """The fastest tree of the sizes under each of the caps, if the profile can price any."""
        expected, widths = grow_many(self._table, np.array(caps), sizes[0], sizes[-1])
        all_sizes = np.broadcast_to(np.array(sizes), expected.shape)
        speeds = np.nan_to_num(expected) / self._times.steps_ms(all_sizes, widths)
        speeds[:, ~self._allowed[sizes[0] : sizes[-1] + 1]] = 0.0
        none = (0,) * (len(self._table) - widths.shape[2])
        best = (speeds >= speeds.max(axis=1, keepdims=True) * (1 - TIE)).argmax(axis=1)
        return [
            PricedCaps(
                float(speeds[row, n]), sizes[n], (*widths[row, n].tolist(), *none), caps[row]
            )
            for row, n in enumerate(best)
            if speeds[row, n] > 0
        ]
