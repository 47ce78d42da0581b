"""What a step takes besides its forwards: whole steps are timed, and their forwards taken off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from scipy.optimize import nnls

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.step import State
from sequoia_opt.measure.forwards import Point
from sequoia_opt.measure.timing import PLAIN_TURNS, Timed
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Sampling
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.latency import Overhead, overhead_name
from sequoia_opt.plan.tree import TokenTree

# Sampling, and sampling from a cut distribution: what a step costs besides its forwards depends
# on which of these it does, not on the numbers.
TEMPERATURE, NUCLEI = 0.6, (1.0, 0.9)


def overhead_trees(largest: int, few: bool = False) -> list[TokenTree]:
    """Trees of different sizes and depths to tell the overhead's parts from one another; of those
    to 64 nodes no fewer than the parts, with `few` too."""
    trees = [
        shapes.chain(1),
        shapes.chain(2),
        shapes.chain(4),
        shapes.chain(8),
        shapes.k_ary(3, 1),
        shapes.k_ary(2, 3),
        shapes.k_sequences(3, 5),
        shapes.k_sequences(4, 8),
        shapes.k_sequences(8, 7),
        shapes.k_ary(7, 2),
    ]
    return [tree for tree in trees[:: 2 if few else 1] if tree.size <= largest]


def samplings(verifiers: Sequence[str]) -> list[Sampling]:
    """Those that differ in what a step costs besides its forwards: greedy, and these verifiers."""
    greedy = [Sampling(0.0)]
    return greedy + [Sampling(TEMPERATURE, top_p, name) for name in verifiers for top_p in NUCLEI]


def steps_to_time(
    pair: Pair, context: int, largest: int, ways: Sequence[Sampling]
) -> list[tuple[str, TokenTree, Timed]]:
    """Whole steps to time: the overhead's name, the tree, and the step.

    Tokens are random, which costs what a text's cost: shapes follow from the tree alone. Steps
    that bring weights in take long, and what no forward accounts for is little of them: of these,
    fewer.
    """
    streams = pair.target.stream is not None
    steps = []
    for way in ways:
        enough = overhead_trees(largest, few=True)
        for tree in overhead_trees(largest, few=streams):
            decoder = Decoder(pair, tree, **asdict(way))
            name = overhead_name(
                decoder.verifier.name, way.temperature, way.top_p, way.top_k, way.min_p
            )
            turns = PLAIN_TURNS if tree.size == 1 and not streams else 1
            timed = Timed(whole_step(decoder, context), turns=turns, streams=streams)
            timed.spare = tree not in enough
            steps.append((name, tree, timed))
    return steps


def overhead_of(
    steps: list[tuple[str, TokenTree, Timed]],
    forwards: dict[Point, Timed],
    tokens: list[int],
    context: int,
) -> dict[str, Overhead]:
    """What no forward accounts for in whole steps, by verifier.

    Taken round by round, step less forwards of the same round: the machine's drift, which is
    larger than any overhead, cancels.
    """
    target, draft = (
        np.array([forwards[role, 1, context, count].times for count in tokens])
        for role in ("target", "draft")
    )
    residuals: dict[str, list[tuple[TokenTree, float, float]]] = {}
    for name, tree, timed in steps:
        extra = [
            step
            - np.interp(tree.size, tokens, target[:, number])
            - np.interp(draft_passes(tree), tokens, draft[:, number]).sum()
            for number, step in enumerate(timed.times)
        ]
        row = (tree, float(np.median(extra)), float(np.median(timed.times)))
        residuals.setdefault(name, []).append(row)
    return {name: fit_overhead(rows) for name, rows in residuals.items()}


def whole_step(decoder: Decoder, context: int) -> Callable[[], object]:
    """One step at `context` cached tokens, again and again from the same state."""
    device = decoder.pair.device
    state = State(
        torch.tensor([context], device=device), torch.zeros(2, dtype=torch.long, device=device)
    )
    return lambda: decoder.advance(state, context, decoder.pair.user)


def fit_overhead(rows: Sequence[tuple[TokenTree, float, float]]) -> Overhead:
    """Least squares of constant, per token, per level and for drafting at all, relative to each
    step's time.

    Plain decoding is what every speed-up is measured against, so the fit passes through the
    one-node tree; the rest share out what larger trees add to it. None of it is negative.

    Args:
        rows: for each measured step its tree, what no forward accounts for, and its time.
    """
    plain = [extra for tree, extra, _ in rows if tree.size == 1]
    # On a loaded machine a forward timed between others can take longer than a whole step; that
    # must not leave plain decoding no time.
    base = max(float(np.mean(plain)), 0.0)
    others = [row for row in rows if row[0].size > 1]
    if not others:
        return Overhead(base, 0.0, 0.0)
    weights = np.array([1 / step for _, _, step in others])
    features = np.array([[tree.size - 1, len(draft_passes(tree)), 1] for tree, _, _ in others])
    wanted = np.array([extra - base for _, extra, _ in others])
    (per_token, per_level, drafting), _ = nnls(features * weights[:, None], wanted * weights)
    return Overhead(base - float(per_token), float(per_token), float(per_level), float(drafting))
