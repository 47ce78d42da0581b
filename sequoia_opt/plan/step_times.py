"""What a step takes on the measured machine, for many trees at once.

Turns a profile into tables of milliseconds by number of tokens, and into replicates of them
that carry the spread of the timings. Knows nothing of acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_passes import draft_passes
from sequoia_opt.plan.intervals import deviation
from sequoia_opt.plan.latency import LatencyProfile, ModelLatency
from sequoia_opt.plan.tree import AUTOREGRESSIVE, IntArray, TokenTree
from sequoia_opt.types import FloatArray

JUMPS = 4  # steepest rises in latency below a width whose edges are worth a try
STEEP = 1.5  # times the mean rise is a steep one


class Objective:
    """t(T, L) for trees of given size and widths, at one or several contexts.

    A step over several contexts is their weighted mean: what a token costs where decoding
    passes through all of them.

    Attributes:
        target_ms: [replicates + 1, largest + 1], a target forward by number of tokens.
        draft_ms: the same of the draft.
        plain_ms: [replicates + 1], a step of plain decoding.

    The first row holds the medians, the others resampled ones; below the fewest tokens that
    were measured the tables are infinite.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        work: str,
        contexts: Mapping[float, float],
        batch: int = 1,
        replicates: int = 0,
        seed: int = 0,
    ) -> None:
        """Read the tables off the profile.

        Args:
            profile: measured latencies.
            work: name of the overhead that applies (verifier and temperature class).
            contexts: weight of each number of cached tokens.
            batch: sequences of a forward.
            replicates: how many resampled tables to add.

        Raises:
            SequoiaError: batch, context or verifier was not measured.
        """
        self.profile, self.work, self.batch = profile, work, batch
        total = sum(contexts.values())
        self.contexts = {context: weight / total for context, weight in contexts.items()}
        self.overhead = profile.overhead_for(work)
        generator = np.random.default_rng(seed)
        self.target_ms = self._table(profile.target, replicates, generator)
        self.draft_ms = self._table(profile.draft, replicates, generator)
        self.plain_ms = self.step_ms(AUTOREGRESSIVE)
        if not (self.plain_ms > 0).all():
            raise SequoiaError(
                f"overhead of {work}: found {self.overhead.constant_ms:g} ms, which leaves plain "
                "decoding no time at all; profile again"
            )

    @property
    def largest(self) -> int:
        """The largest tree that the profile can price."""
        return int(self.target_ms.shape[1]) - 1

    def _table(
        self, model: ModelLatency, replicates: int, generator: np.random.Generator
    ) -> FloatArray:
        """Milliseconds by number of tokens: the medians, then replicates of them.

        A replicate multiplies each measured median by a log-normal error as wide as its
        interval; points between measured ones follow their neighbours.
        """
        sizes = np.arange(1, model.largest(self.batch) + 1)
        table = np.zeros((replicates + 1, len(sizes) + 1))
        errors = {
            id(curve): generator.standard_normal((replicates, len(curve.tokens)))
            for curve in model.curves
        }
        for context, weight in self.contexts.items():
            for curve, share in model.between(context, self.batch):
                low, high = (np.log(np.maximum(t, 1e-9)) for t in (curve.low_ms, curve.high_ms))
                points = curve.median_ms * np.exp(errors[id(curve)] * deviation(low, high))
                points = np.vstack((curve.median_ms, points))
                table[:, 1:] += weight * share * _interpolated(points, curve.tokens, sizes)
                table[:, 1 : curve.tokens[0]] = np.inf
        return table

    def step_ms(self, tree: TokenTree) -> FloatArray:
        """t(T, L) of a tree, [replicates + 1].

        Raises:
            SequoiaError: the profile has no point for one of its forwards.
        """
        widths = list(draft_passes(tree))
        for model, table, tokens in (
            (self.profile.target, self.target_ms, tree.size),
            (self.profile.draft, self.draft_ms, max(widths, default=0)),
        ):
            if tokens >= table.shape[1] or np.isinf(table[0, tokens]):
                first = int(np.isfinite(table[0, 1:]).argmax()) + 1
                raise SequoiaError(
                    f"{model.model}: measured for {first} to {table.shape[1] - 1} tokens a "
                    f"forward, not for {tokens}; profile with more --tokens"
                )
        forwards = self.target_ms[:, tree.size] + self.draft_ms[:, widths].sum(axis=1)
        return np.asarray(forwards + self.overhead.at(tree.size, len(widths)))

    def steps_ms(self, sizes: IntArray, widths: IntArray) -> FloatArray:
        """Median t(T, L) of many trees; infinite where a forward was not measured.

        Args:
            sizes: nodes of each tree, any shape.
            widths: internal nodes on each of its levels, [*sizes.shape, levels].
        """
        first, others = self.level_ms(widths[..., 0], True), self.level_ms(widths[..., 1:], False)
        return np.asarray(self.rest_ms(sizes) + first + others.sum(axis=-1))

    def rest_ms(self, sizes: IntArray) -> FloatArray:
        """Median of all of a step but its draft levels, by size."""
        return self._rest_ms[np.minimum(sizes, len(self._rest_ms) - 1)]

    def level_ms(self, widths: IntArray, first: bool) -> FloatArray:
        """Median of a draft level by its internal nodes, nothing where there are none.

        The first draft forward has the fixed width 2 (see draft_passes), and with it
        comes what drafting costs at all.
        """
        table = self._level_ms
        if first:
            cost = table[min(2, len(table) - 1)] + self.overhead.drafting_ms
            return np.where(widths > 0, cost, 0.0)
        return table[np.minimum(widths, len(table) - 1)]

    def narrower(self, width: int) -> list[int]:
        """Widths to try instead of `width`: a little less, half, or just below a steep rise."""
        drafts = self.draft_ms[0]
        rises = np.diff(drafts[1 : min(width, len(drafts) - 1) + 1])
        rises = np.where(np.isfinite(rises), rises, 0.0)
        steepest = np.argsort(-rises, kind="stable")[:JUMPS]
        jumps = steepest[rises[steepest] > STEEP * max(rises.mean(), 0.0)] + 1 if len(rises) else []
        return sorted({cap for cap in (width - 2, width - 1, width // 2, *jumps) if cap >= 1})

    @cached_property
    def _rest_ms(self) -> FloatArray:
        sizes = np.arange(self.target_ms.shape[1])
        rest = self.overhead.constant_ms + self.overhead.per_token_ms * sizes
        return np.append(self.target_ms[0] + rest, np.inf)

    @cached_property
    def _level_ms(self) -> FloatArray:
        drafts = np.append(self.draft_ms[0] + self.overhead.per_level_ms, np.inf)
        drafts[0] = 0.0
        return drafts


def _interpolated(points: FloatArray, tokens: list[int], sizes: IntArray) -> FloatArray:
    """Rows of values at `tokens` read off at `sizes`, linear in between."""
    if len(tokens) == 1:
        return points[:, np.zeros(len(sizes), np.int64)]
    right = np.clip(np.searchsorted(tokens, sizes), 1, len(tokens) - 1)
    places = np.asarray(tokens, dtype=np.float64)
    share = (sizes - places[right - 1]) / (places[right] - places[right - 1])
    return np.asarray(points[:, right - 1] * (1 - share) + points[:, right] * share)
