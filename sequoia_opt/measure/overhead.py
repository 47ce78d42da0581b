"""A step's overhead: whole steps are timed, and their forward passes subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from scipy.optimize import nnls

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.drafters import State
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.forwards import Filled, Point, overhead_trees
from sequoia_opt.measure.timing import PLAIN_TURNS, Timed
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.latency import Overhead, overhead_name
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

# Sampling, and sampling from a cut distribution: the overhead depends on which of these a step
# does, not on the numbers.
TEMPERATURE, NUCLEI = 0.6, (1.0, 0.9)


def samplings(verifiers: Sequence[str]) -> list[Sampling]:
    """Ways to sample that differ in their overhead: greedy, and each verifier with and without a
    cut distribution."""
    greedy = [Sampling(0.0)]
    return greedy + [Sampling(TEMPERATURE, top_p, name) for name in verifiers for top_p in NUCLEI]


def steps_to_time(
    pair: Pair, filled: Filled, context: int, ways: Sequence[Sampling]
) -> list[tuple[str, TokenTree, Timed]]:
    """Whole steps to time: the overhead's name, the tree, and the step.

    Their tokens are random, which takes as long as a text's: shapes follow from the tree alone.
    Steps that stream layers take long, and the overhead is a small part of them, so fewer of them
    are timed.
    """
    streams = pair.target.streamed_layers > 0
    largest = filled.tokens[-1]
    steps = []
    for way in ways:
        enough = overhead_trees(largest, few=True)
        for tree in overhead_trees(largest, few=streams):
            decoder = Decoder(pair, tree, **asdict(way))
            name = overhead_name(way)
            turns = PLAIN_TURNS if tree.size == 1 and not streams else 1
            step = whole_step(decoder, filled.as_text, context)
            timed = Timed(step, turns=turns, streams=streams)
            timed.optional = tree not in enough
            steps.append((name, tree, timed))
    return steps


def overhead_of(
    steps: list[tuple[str, TokenTree, Timed]],
    forwards: dict[Point, Timed],
    tokens: list[int],
    context: int,
    first_pass: int,
) -> dict[str, Overhead]:
    """The part of whole steps outside their forward passes, by verifier.

    It is computed round by round, a step less the forward passes of the same round: the machine's
    drift, which is larger than any overhead, cancels.

    Args:
        first_pass: tokens of the draft's first forward pass.
    """
    target, draft = (
        np.array([forwards[role, 1, context, count].times for count in tokens])
        for role in ("target", "draft")
    )
    residuals: dict[str, list[tuple[TokenTree, float, float]]] = {}
    for name, tree, timed in steps:
        extra_ms = [
            step_ms
            - np.interp(tree.size, tokens, target[:, number])
            - np.interp(draft_passes(tree, first_pass), tokens, draft[:, number]).sum()
            for number, step_ms in enumerate(timed.times)
        ]
        row = (tree, float(np.median(extra_ms)), float(np.median(timed.times)))
        residuals.setdefault(name, []).append(row)
    return {name: fit_overhead(rows) for name, rows in residuals.items()}


def whole_step(decoder: Decoder, caches: Caches, context: int) -> Callable[[], object]:
    """One step at a context length of `context`, repeated from the same state."""
    device = decoder.pair.device
    random = torch.Generator(device).manual_seed(0)
    state = decoder.step.started(
        State(
            torch.tensor([context], device=device),
            torch.zeros(2, dtype=torch.long, device=device),
        )
    )

    def run() -> object:
        told, _ = decoder.step(caches, state, context, decoder.uniforms_for_step(random))
        return decoder.read_back(told)

    return run


def fit_overhead(rows: Sequence[tuple[TokenTree, float, float]]) -> Overhead:
    """Fit the overhead by least squares, relative to each step's time.

    Its parts are a constant, a cost per token, a cost per level, and one for drafting at all; none
    is negative. Every speedup is measured against plain decoding, so the fit passes through the
    one-node tree, and the other parts share out what larger trees add to it.

    Args:
        rows: for each measured step its tree, its overhead and its time, in milliseconds.
    """
    plain = [extra_ms for tree, extra_ms, _ in rows if tree.size == 1]
    # On a loaded machine a forward pass can take longer than a whole step that was timed at
    # another moment; that must not leave plain decoding no time.
    base = max(float(np.mean(plain)), 0.0)
    others = [row for row in rows if row[0].size > 1]
    if not others:
        return Overhead(base, 0.0, 0.0)
    weights = np.array([1 / step_ms for _, _, step_ms in others])
    features = np.array([[tree.size - 1, len(draft_passes(tree)), 1] for tree, _, _ in others])
    added_ms = np.array([extra_ms - base for _, extra_ms, _ in others])
    (per_token, per_level, drafting), _ = nnls(features * weights[:, None], added_ms * weights)
    return Overhead(base - float(per_token), float(per_token), float(per_level), float(drafting))
