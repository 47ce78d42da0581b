"""The trees that `solve` considers: generated from acceptance rates and the time of a step.

The trees of most tokens for every size and depth are priced, and their fastest are candidates;
so are trees with fewer tokens that a search finds faster. With a shape asked for, the candidates
are the fastest trees of that shape. Here acceptances count as independent; `judge` replays them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import BestFirst, BestTrees
from sequoia_opt.plan.cap_search import CapSearch, may_be_faster
from sequoia_opt.plan.hill_climb import climb_from, starting_trees
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solve_options import ANY_TREE, DEFAULT_MAX_DEPTH, SolveOptions
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import AUTOREGRESSIVE, BoolArray, TokenTree
from sequoia_opt.types import FloatArray

MAX_FINALISTS = 32  # trees of most tokens, or of one shape, that are judged
SEARCHED_DEPTHS = 4  # depth limits that the search starts from
CLIMB_STARTS = 4  # trees of most tokens to climb from, where rates rise with the rank
TREES_PER_SHAPE = 6  # trees of each shape that are judged as baselines
PLAIN = "plain"
"""Name of plain decoding among the baselines."""


@dataclass(frozen=True)
class SearchSpace:
    """The trees among which the solver chooses.

    Attributes:
        table: rates of each depth and rank, [max(1, max_depth), ranks].
        max_depth: the depth limit.
        allowed: sizes that a tree may have, [max_size + 1].
        depth: the depth limit if it is fixed, so that only E*(n, depth) counts; else None.
        shape: `ANY_TREE` or one of `shapes.NAMES`.
        size: the number of nodes if it is fixed; else None.
    """

    table: FloatArray
    max_depth: int
    allowed: BoolArray
    depth: int | None
    shape: str
    size: int | None

    @property
    def max_size(self) -> int:
        """Nodes of the largest tree."""
        return len(self.allowed) - 1

    @property
    def child_rates(self) -> FloatArray:
        """Rates of each depth that has nodes besides the root, [max_depth, ranks]."""
        return self.table[: self.max_depth]

    @classmethod
    def of(
        cls,
        options: SolveOptions,
        profile: LatencyProfile,
        acceptance: Acceptance,
        times: StepTimes,
    ) -> SearchSpace:
        """The space that options leave.

        Raises:
            SequoiaError: the profile has no point for so large a tree, or for any draft pass.
        """
        largest = max(options.size or 0, options.max_size or 0)
        if largest > times.largest_size:
            raise SequoiaError(
                f"the profile of {profile.target.model} has no point past {times.largest_size} "
                f"tokens, {largest} asked for; profile with more --tokens"
            )
        max_size = options.size or options.max_size or times.largest_size
        max_depth = DEFAULT_MAX_DEPTH if options.max_depth is None else options.max_depth
        if options.depth is not None:
            max_depth = options.depth
        max_depth = min(max_depth, max_size - 1)  # no tree is deeper
        if profile.draft.is_free:
            max_depth = _without_static_trees(options, profile)
        if max_depth and not times.can_draft:
            raise SequoiaError(
                f"the profile of {profile.draft.model} has no point for {profile.first_pass} "
                "tokens, the first draft forward pass of every step; profile with more --tokens"
            )
        allowed = np.full(max_size + 1, options.size is None)
        allowed[0], allowed[max_size] = False, True
        return cls(
            table=acceptance.table(max(1, max_depth))[:, : options.max_width],
            max_depth=max_depth,
            allowed=allowed,
            depth=None if options.depth is None else max_depth,
            shape=options.shape,
            size=options.size,
        )


def _without_static_trees(options: SolveOptions, profile: LatencyProfile) -> int:
    """The depth limit where the drafter has no static trees, as a lookup: its trees follow the
    match, so that plain decoding alone competes with adaptive plans.

    Raises:
        SequoiaError: a static tree was asked for.
    """
    for name in ("size", "depth"):
        value = getattr(options, name)
        if value is not None and value > (name == "size"):
            raise SequoiaError(
                f"{name}: found {value}, but the trees of {profile.draft.model} follow the match; "
                f"drop it, or limit them with --max-{name}"
            )
    return 0


def surface(best: BestTrees, times: StepTimes, space: SearchSpace) -> FloatArray:
    """Tokens per second of each E*(n, D), [max_depth + 1, max_size + 1].

    NaN where no tree exists or is allowed, where a shallower limit has the same tree, and where
    the profile lacks a point.
    """
    expected = best.expected
    sizes = np.broadcast_to(np.arange(expected.shape[1]), expected.shape)
    speed = np.asarray(1000 * expected / times.steps_ms(sizes, best.widths()))
    speed[:, ~space.allowed] = np.nan
    speed[space.max_depth + 1 :] = np.nan
    if space.depth is None:
        shallower = np.fmax.accumulate(np.where(np.isnan(expected), -np.inf, expected), axis=0)
        speed[1:][~(expected[1:] > shallower[:-1] + 1e-12)] = np.nan
    else:
        speed[: space.depth] = np.nan
    speed[speed == 0] = np.nan  # a forward pass that was not measured
    return speed


def candidate_trees(
    best: BestTrees, speed: FloatArray, times: StepTimes, space: SearchSpace
) -> list[TokenTree]:
    """The trees that may be the answer, each once.

    Args:
        best: the trees of most tokens for `space.table`.
        speed: their tokens per second, see `surface`.

    Raises:
        SequoiaError: no tree fits the space.
    """
    if space.shape != ANY_TREE:
        trees = _of_shape(times, space)
    else:
        trees = _finalists(best, speed)
        if space.size is None or space.depth is None:
            trees += _searched(best, speed, times, space)
    if not trees:
        kind = "tree" if space.shape == ANY_TREE else space.shape
        sizes = f"up to {space.max_size}" if space.size is None else f"{space.size}"
        raise SequoiaError(
            f"no {kind} of {sizes} nodes is at most {space.max_depth} deep with at most "
            f"{space.table.shape[1]} children per node"
        )
    return list(dict.fromkeys(trees))


def baseline_trees(times: StepTimes, space: SearchSpace) -> list[tuple[str, TokenTree]]:
    """Plain decoding and the most promising trees of each shape that other tools use, by name."""
    named = [(PLAIN, AUTOREGRESSIVE)]
    if space.max_depth:
        any_size = np.ones(space.max_size + 1, dtype=bool)
        for name, shape in shapes.shaped_trees(space.child_rates, space.max_size).items():
            trees = _fastest_of_shape(shape, times, any_size)[:TREES_PER_SHAPE]
            named += [(name, tree) for tree in trees]
    return named


def _finalists(best: BestTrees, speed: FloatArray) -> list[TokenTree]:
    """The fastest trees of most tokens, and the fastest of each depth.

    Replay may favour other depths than independence does.
    """
    ranked = _ranked(speed)[:MAX_FINALISTS]
    ranked += [(d, int(np.nanargmax(row))) for d, row in enumerate(speed) if np.isfinite(row).any()]
    return [best.tree(size, depth) for depth, size in dict.fromkeys(ranked)]


def _searched(
    best: BestTrees, speed: FloatArray, times: StepTimes, space: SearchSpace
) -> list[TokenTree]:
    """Trees that may be faster than those of most tokens."""
    table, allowed = space.child_rates, space.allowed
    fastest = float(np.nanmax(speed, initial=0.0)) / 1000
    promising = may_be_faster(best.expected[: len(table) + 1], times, fastest, allowed)
    if not promising[1:].any():
        return []
    depths, sizes = np.nonzero(promising)
    deepest, largest = int(depths.max()), int(sizes.max())
    if not np.isfinite(speed[: deepest + 1, : largest + 1]).any():
        deepest = len(table)  # with a fixed depth, all trees to start from are deeper
    table, allowed = table[:deepest], allowed[: largest + 1]
    starts = _ranked(speed[: deepest + 1, : largest + 1])
    # If the profile can price none of the trees of most tokens, it may price a narrower one.
    limits = list(dict.fromkeys(depth for depth, _ in starts))[:SEARCHED_DEPTHS] or [deepest]
    if isinstance(best, BestFirst):
        return CapSearch(table, times, allowed).run(limits)
    fullest = [best.tree(size, depth) for depth, size in starts[:CLIMB_STARTS]]
    narrower = starting_trees(table, limits, times, allowed)
    return climb_from(table, [*fullest, *narrower], times, allowed)


def _of_shape(times: StepTimes, space: SearchSpace) -> list[TokenTree]:
    """The most promising trees of the asked shape, and plain decoding."""
    trees = [AUTOREGRESSIVE] if space.allowed[1] else []
    if space.max_depth:
        shape = shapes.shaped_trees(space.child_rates, space.max_size)[space.shape]
        trees += _fastest_of_shape(shape, times, space.allowed)
    return trees


def _fastest_of_shape(
    shape: shapes.ShapedTrees, times: StepTimes, allowed: BoolArray
) -> list[TokenTree]:
    """The trees of a shape that speculate, the most promising first."""
    speed = shape.expected / times.steps_ms(shape.sizes, shape.widths)
    speed[:, 0] = np.nan
    speed[~allowed[np.minimum(shape.sizes, len(allowed) - 1)]] = np.nan
    speed[speed == 0] = np.nan  # a forward pass that was not measured
    return [shape.tree(row, depth) for row, depth in _ranked(speed)[:MAX_FINALISTS]]


def _ranked(speed: FloatArray) -> list[tuple[int, int]]:
    """Indices of all values that are not NaN, the largest first; of equal values the first one."""
    order = np.argsort(-speed, axis=None, kind="stable")[: np.isfinite(speed).sum()]
    return [divmod(int(i), speed.shape[1]) for i in order]
