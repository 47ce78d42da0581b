"""The fastest tree, beyond the trees of most tokens.

E*(n, D) spends nodes where they bring most tokens. A tree with fewer internal nodes on some
level can still be faster: each draft level costs what its own width costs, and where latency
climbs in steps a node less may save a step. Here for rates that fall with the rank; climb.py has
any others. Knows tokens and times, nothing of their evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.plan.best_trees import ROOT, Level, next_level, tree_of
from sequoia_opt.plan.step_times import Objective
from sequoia_opt.plan.tree import IntArray, TokenTree
from sequoia_opt.types import FloatArray

ROOM = 3  # levels below the deepest start that it may reach: farther ones cost it time
EVEN_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
EVEN_STARTS = 2  # starts with one width for all levels
SAME = 1e-9  # relative difference of two values that makes none
REACH = 16  # nodes that a tree may gain or lose in one move, if not a third of its own
BATCH = 2**12  # nodes, of all trees, that are grown at once
HOPE = 0.7  # of the best speed so far a start needs: an ascent has gained a quarter
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Capped:
    """The trees of most tokens with at most so many internal nodes on each level.

    Where rates fall with the rank, the internal nodes of a level are its most valuable ones:
    exchanging the subtrees of two nodes, the larger one to the more valuable, never loses.
    So any tree is matched, size and widths, by one that grows best-first under its own widths
    as caps: caps and size are all there is to search.

    Attributes:
        levels: the nodes of each depth.
        order: the level of each node, in the order of falling value.
        expected: E of the first 1, 2, … nodes.
        widths: internal nodes on each level of these trees, [sizes, levels].
    """

    levels: list[Level]
    order: IntArray
    expected: FloatArray
    widths: IntArray

    def tree(self, size: int) -> TokenTree:
        """The tree of the first `size` nodes."""
        return tree_of(self.levels, np.bincount(self.order[:size]))


def grow(table: FloatArray, caps: Sequence[int], max_size: int) -> Capped:
    """Best-first for the rates `table` [depth, W] under caps on the internal nodes per level."""
    levels = [ROOT]
    for rates, cap in zip(table, caps, strict=True):
        if cap == 0:
            break
        above = levels[-1].first(cap)
        levels.append(next_level(above, rates, max_size))
    values = np.concatenate([level.values for level in levels])
    depths = np.repeat(np.arange(len(levels)), [len(level.values) for level in levels])
    order = np.argsort(-values, kind="stable")[:max_size]
    depths = depths[order]
    first = np.concatenate([level.ranks == 1 for level in levels])[order]
    widths = np.zeros((len(order), len(table)), np.int64)
    widths[np.flatnonzero(first), depths[first] - 1] = 1
    return Capped(levels, depths, np.cumsum(values[order]), np.cumsum(widths, axis=0))


def grow_all(
    table: FloatArray, caps: IntArray, least_size: int, max_size: int
) -> tuple[FloatArray, IntArray]:
    """What `grow` gives for many rows of caps at once, in numbers alone.

    A level's children that are worth less than `max_size` nodes of the levels above are dropped
    at once: so few are left that the work is the sizes', not the ranks'.

    Args:
        table: rates [depth, W] without equal products, see `untied`.
        caps: [rows, depth].

    Returns:
        E of the first `least_size` to `max_size` nodes, [rows, sizes], NaN where there are not
        so many; and the internal nodes on each level of these trees, [rows, sizes, levels], of
        as many levels as have any.
    """
    level = np.ones((len(caps), 1))  # values of the nodes of a depth, falling
    most = np.zeros((len(caps), max_size))  # of those of all depths so far, falling
    most[:, 0] = 1.0
    values = [most.copy()]  # of all depths, in no order
    opened = [np.full(max_size, -1)]  # the level that gets an internal node with each, if any
    for depth, (rates, cap) in enumerate(zip(table, caps.T, strict=True)):
        level = level[:, : int(cap.max())]
        level = np.where(np.arange(level.shape[1]) < cap[:, None], level, 0.0)
        least = np.maximum(most[:, -1:], np.finfo(float).tiny)
        parents, ranks = np.nonzero((level / least).max(axis=0)[:, None] * rates >= 1)
        if not len(parents):
            break
        children = level[:, parents] * rates[ranks]
        children[children < least] = 0.0
        values.append(children)
        opened.append(np.where(ranks == 0, depth, -1))
        level = _falling(children)[:, :max_size]
        level = level[:, : int(np.count_nonzero(level, axis=1).max())]
        most = _falling(np.concatenate((most, level), axis=1))[:, :max_size]
    order = np.argsort(-np.concatenate(values, axis=1), axis=1)[:, :max_size]
    levels = np.concatenate(opened)[order][..., None] == np.arange(max(1, len(values) - 1))
    widths = np.cumsum(levels, axis=1)
    expected = np.where(most > 0, np.cumsum(most, axis=1), np.nan)
    return expected[:, least_size - 1 :], widths[:, least_size - 1 :]


def _falling(values: FloatArray) -> FloatArray:
    """Each row sorted, the largest first."""
    return -np.sort(-values, axis=1)


def untied(table: FloatArray) -> FloatArray:
    """Rates less than `SAME` from those of `table` [depth, W], without equal products.

    Then a node's value alone says whether it is among the best n. What was equal now falls with
    the rank, and mostly from children of elder nodes to those of younger ones; none is 0 or 1.
    """
    depth, ranks = table.shape
    depths, places = np.arange(1, depth + 1)[:, None], np.arange(1, ranks + 1)
    apart = depths / places + depth * places
    apart += np.random.default_rng(0).random(table.shape) / 10
    return np.asarray(np.clip(table, SAME / 1000, 1.0) * (1 - SAME * apart / (apart.max() + 1)))


def hopeful(
    expected: FloatArray, objective: Objective, best: float, allowed: BoolArray
) -> BoolArray:
    """Depths and sizes [depth + 1, size + 1] at which a tree could be faster than `best`.

    No tree of n nodes, D deep, has more tokens than E*(n, D), and none of its levels costs
    less than the cheapest. Where draft forwards cost the same at every width, and every depth
    is allowed, no tree is left.

    Args:
        expected: E*(n, D), the same shape.
        best: the fastest known, tokens per ms.
    """
    depths, sizes = (np.arange(count) for count in expected.shape)
    first = float(objective.level_ms(np.array(1), True))
    cheapest = objective.level_ms(sizes[1:], False).min(initial=np.inf)
    drafts = np.cumsum(np.select([depths == 1, depths > 1], [first, cheapest]))
    time = objective.rest_ms(sizes) + drafts[:, None]
    # Overheads may be fitted below 0; what they leave no time for is not bounded.
    return np.asarray(((expected > best * (1 + SAME) * time) | (time <= 0)) & allowed)


@dataclass(frozen=True)
class Found:
    """A tree that the search met: its speed (tokens per ms), size, widths and the caps it has."""

    speed: float
    size: int
    widths: tuple[int, ...]
    caps: tuple[int, ...]


class CapSearch:
    """Steepest ascent over caps, from the best tree of several depths."""

    def __init__(self, table: FloatArray, objective: Objective, allowed: BoolArray) -> None:
        """Search trees of rates `table` [max_depth, W] and of sizes n with `allowed[n]`."""
        self._table, self._objective, self._allowed = untied(table), objective, allowed
        self._size = int(np.flatnonzero(allowed)[-1])
        self._free: tuple[int, ...] = ()  # caps of levels that are not held
        self._seen: dict[tuple[int, ...], tuple[int, int]] = {}

    def run(self, depths: Sequence[int]) -> list[TokenTree]:
        """The trees at the end of the ascents, the fastest first.

        Starts under depth limits alone, and under one width for all levels: where latency rises
        steeply at some width, no level alone gains by going below it.

        Args:
            depths: limits to start from, the most promising first.
        """
        deepest = min(max(depths) + ROOM, len(self._table))
        self._free = self._even_caps(self._size, deepest)
        limited = self._starts(self._even_caps(self._size, depth) for depth in (deepest, *depths))
        widest = max((max(found.widths) for found in limited), default=self._size)
        narrow = self._starts(
            self._even_caps(width, len(self._table)) for width in EVEN_WIDTHS if width < widest
        )
        peaks: list[Found] = []
        for start in sorted((*limited, *narrow[:EVEN_STARTS]), key=lambda f: -f.speed):
            if not peaks or start.speed > HOPE * max(peak.speed for peak in peaks):
                peaks.append(self._ascend(start))
        peaks.sort(key=lambda f: (-f.speed, f.size))
        trees = dict.fromkeys(
            grow(self._table, peak.caps, self._size).tree(peak.size) for peak in peaks
        )
        return list(trees)

    def _starts(self, caps: Iterable[tuple[int, ...]]) -> list[Found]:
        """What is found under these caps, the fastest first; the same tree once.

        Plain decoding is no start: where speculation pays little, nothing near it is faster.
        """
        found = self._evaluate(caps, range(min(2, self._size), self._size + 1))
        distinct = {(f.size, f.widths): f for f in reversed(found)}
        return sorted(distinct.values(), key=lambda f: -f.speed)

    def _even_caps(self, width: int, depth: int) -> tuple[int, ...]:
        return (width,) * depth + (0,) * (len(self._table) - depth)

    def _ascend(self, start: Found) -> Found:
        """Change one level's cap at a time, always to the fastest tree met."""
        best, improved = start, True
        while improved:
            improved = False
            reach = max(REACH, best.size // 3)
            sizes = range(max(1, best.size - reach), min(best.size + reach, self._size) + 1)
            moves = [c for base in (best.widths, best.caps) for c in self._moves(best.widths, base)]
            met = self._evaluate(moves, sizes)
            better = max(met, key=lambda f: f.speed, default=best)
            if better.speed > best.speed * (1 + SAME):
                best, improved = better, True
        return best

    def _moves(self, widths: Sequence[int], base: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The base as caps, but for one level or none, those below it held too, or free."""
        yield tuple(base)
        for level, width in enumerate(widths[1:], start=1):
            none = (0,) * (len(widths) - level)
            if width:
                for cap in (width + 1, *self._objective.narrower(width)):
                    yield (*base[:level], cap, *base[level + 1 :])
                    yield (*base[:level], cap, *self._free[level + 1 :])
                yield (*base[:level], *none)
            else:  # one level deeper
                if widths[level - 1]:
                    yield (*base[:level], 1, *none[1:])
                break

    def _evaluate(self, caps: Iterable[tuple[int, ...]], sizes: range) -> list[Found]:
        """The fastest of the sizes under each of the caps that are new."""
        ends = sizes[0], sizes[-1]
        new = [
            c
            for c in dict.fromkeys(caps)
            if c not in self._seen or not self._seen[c][0] <= ends[0] <= ends[1] <= self._seen[c][1]
        ]
        self._seen.update(dict.fromkeys(new, ends))
        batch = max(1, BATCH // sizes[-1])
        return [
            found
            for start in range(0, len(new), batch)
            for found in self._fastest_sizes(new[start : start + batch], sizes)
        ]

    def _fastest_sizes(self, caps: Sequence[tuple[int, ...]], sizes: range) -> list[Found]:
        expected, widths = grow_all(self._table, np.array(caps), sizes[0], sizes[-1])
        all_sizes = np.broadcast_to(np.array(sizes), expected.shape)
        speeds = np.nan_to_num(expected) / self._objective.steps_ms(all_sizes, widths)
        speeds[:, ~self._allowed[sizes[0] : sizes[-1] + 1]] = 0.0
        none = (0,) * (len(self._table) - widths.shape[2])
        best = (speeds >= speeds.max(axis=1, keepdims=True) * (1 - SAME)).argmax(axis=1)
        return [
            Found(float(speeds[row, n]), sizes[n], (*widths[row, n].tolist(), *none), caps[row])
            for row, n in enumerate(best)
            if speeds[row, n] > 0
        ]
