"""Every small tree, and random machines, to check the solver with."""

from __future__ import annotations

from functools import cache

import numpy as np

from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

KINDS = ("monotone", "stepped", "convex")


@cache
def all_trees(size: int) -> tuple[TokenTree, ...]:
    """Every tree of `size` nodes."""
    if size == 1:
        return (shapes.chain(1),)
    trees = set()
    for tree in all_trees(size - 1):
        for parent in range(tree.size):
            rank = int(tree.child_counts[parent]) + 1
            trees.add(TokenTree.from_any_order([*tree.parents, parent], [*tree.ranks, rank]))
    return tuple(trees)


def speed(tree: TokenTree, acceptance: Acceptance, profile: LatencyProfile) -> float:
    """Tokens per millisecond, from the definitions."""
    return acceptance.expected_tokens(tree) / profile.step_ms(tree, "greedy", 0)


@cache
def _tables(max_size: int, ranks: int) -> tuple[list[TokenTree], list[FloatArray]]:
    trees = [
        tree
        for size in range(1, max_size + 1)
        for tree in all_trees(size)
        if tree.child_counts.max() <= ranks
    ]
    parents, ranks_of, present = (np.zeros((len(trees), max_size), np.int64) for _ in range(3))
    widths = np.zeros((len(trees), max_size), np.int64)
    for row, tree in enumerate(trees):
        parents[row, : tree.size], ranks_of[row, : tree.size] = tree.parents, tree.ranks
        present[row, : tree.size] = 1
        widths[row, : len(draft_passes(tree))] = draft_passes(tree)
    return trees, [parents, ranks_of, present, widths]


def fastest(
    acceptance: Acceptance, profile: LatencyProfile, max_size: int
) -> tuple[TokenTree, float]:
    """The fastest of all trees of at most `max_size` nodes, and its speed.

    For an acceptance that does not depend on depth, and an overhead that depends on neither
    tokens nor levels.
    """
    trees, (parents, ranks, present, widths) = _tables(max_size, acceptance.width)
    rates = np.append(acceptance.rates, 0.0)  # rank 0, the root's, reads the last
    values = np.ones(parents.shape)
    rows = np.arange(len(trees))
    for node in range(1, max_size):
        values[:, node] = values[rows, parents[:, node]] * rates[ranks[:, node] - 1]
    tokens = (values * present).sum(axis=1)
    target_ms, draft_ms = (
        np.insert(model.at(np.arange(1, max_size + 1), 0), 0, 0.0)
        for model in (profile.target, profile.draft)
    )
    sizes, overhead = present.sum(axis=1).astype(int), profile.overhead["greedy"]
    time = target_ms[sizes] + draft_ms[widths].sum(axis=1) + overhead.constant_ms
    speeds = tokens / (time + overhead.drafting_ms * (sizes > 1))
    best = int(speeds.argmax())
    return trees[best], float(speeds[best])


def random_rates(generator: np.random.Generator, ranks: int, falling: bool) -> FloatArray:
    """Acceptance rates of `ranks` ranks, from even to spiked."""
    rates = generator.dirichlet(np.full(ranks, generator.choice([0.5, 1.0, 4.0])))
    rates *= generator.uniform(0.6, 1.0)
    return -np.sort(-rates) if falling else rates


def random_curve(generator: np.random.Generator, kind: str, points: int) -> FloatArray:
    """Time of a forward pass of 1 to `points` tokens, without a unit, growing as `kind` says."""
    if kind == "monotone":
        rises = generator.exponential(1, points) * (generator.random(points) < 0.6)
        return np.asarray(generator.uniform(0.05, 1) + np.cumsum(rises))
    if kind == "stepped":
        width = generator.integers(2, 5)
        steps = (np.arange(points) + generator.integers(0, width)) // width
        return np.asarray(generator.uniform(0.1, 2) + steps * generator.uniform(0.3, 3))
    growth = (np.arange(points) / generator.uniform(1, 8)) ** generator.uniform(1, 3)
    return np.asarray(generator.uniform(0.1, 1) + growth)


def random_profile(generator: np.random.Generator, kind: str, points: int) -> LatencyProfile:
    """A machine on which the draft pays for width and the target for size, to random extents."""
    target = 10 * generator.uniform(0.5, 2)
    target = target + random_curve(generator, kind, points) * 10 ** generator.uniform(-1.5, 0.5)
    draft = random_curve(generator, kind, points) * 10 ** generator.uniform(-1.5, 0.3)

    def model(times: FloatArray) -> ModelLatency:
        return ModelLatency("m", "", [Curve(1, 0, list(range(1, points + 1)), times, times, times)])

    overhead = {"greedy": Overhead(0.1, 0, 0, drafting_ms=float(draft[0]))}
    return LatencyProfile({}, {}, {}, model(target), model(draft), overhead)
