"""The time of a step on the measured machine, for many trees at once.

Turns a latency profile into tables of milliseconds by number of tokens, and into replicates of
these tables that carry the uncertainty of the timings. Knows nothing of acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.draft_passes import FIRST_WIDTH, pass_tokens
from sequoia_opt.plan.intervals import deviation
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import AUTOREGRESSIVE, IntArray, TokenTree
from sequoia_opt.types import FloatArray

MAX_STEEP_RISES = 4  # how many steep rises in latency `narrower_widths` looks below
STEEP = 1.5  # a rise is steep above this multiple of the mean rise


class StepTimes:
    """t(T, L) for trees of given size and widths, at one or several context lengths.

    With several context lengths, a step's time is the weighted mean over them: what a step
    costs on average while decoding passes through all of them.

    Attributes:
        target_ms: [replicates + 1, largest_size + 1], a target forward pass by number of tokens.
        draft_ms: [replicates + 1, most tokens + 1], a draft forward pass by number of tokens.
        plain_ms: [replicates + 1], a step of plain decoding.
        contexts: weight of each context length; the weights sum to 1.

    The first row of each table holds the medians, the other rows are resampled. Entries below
    the fewest tokens that were measured are infinite; of a block drafter they are the fewest's.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        overhead: str,
        contexts: Mapping[float, float],
        batch: int = 1,
        replicates: int = 0,
        seed: int = 0,
    ) -> None:
        """Build the tables from the profile.

        Args:
            profile: measured latencies.
            overhead: name of the overhead that applies, see `latency.overhead_name`.
            contexts: weight of each context length.
            batch: sequences per forward pass.
            replicates: how many resampled tables to add.

        Raises:
            SequoiaError: the profile lacks the batch, a context or the overhead, or the overhead
                is so far below 0 that plain decoding would take no time.
        """
        self._profile, self._batch = profile, batch
        total = sum(contexts.values())
        self.contexts = {context: weight / total for context, weight in contexts.items()}
        self._overhead = profile.overhead_for(overhead)
        generator = np.random.default_rng(seed)
        self.target_ms = self._resampled_table(profile.target, replicates, generator)
        self.draft_ms = self._resampled_table(profile.draft, replicates, generator)
        self.plain_ms = self.step_ms(AUTOREGRESSIVE)
        if not (self.plain_ms > 0).all():
            raise SequoiaError(
                f"overhead of {overhead}: found {self._overhead.constant_ms:g} ms, expected an "
                "overhead that leaves plain decoding a time above 0; profile again"
            )

    def _resampled_table(
        self, model: ModelLatency, replicates: int, generator: np.random.Generator
    ) -> FloatArray:
        """Milliseconds by number of tokens: as expected, then replicates. Of a drafter
        that makes no forward pass, 0 for as many tokens as the target has.

        A replicate multiplies each measured time by a log-normal error as wide as its median's
        interval; points between measured ones follow their neighbours.
        """
        if model.is_free:
            return np.zeros_like(self.target_ms)
        sizes = np.arange(1, model.largest(self._batch) + 1)
        table = np.zeros((replicates + 1, len(sizes) + 1))
        fewest = 1  # tokens that were measured at every context
        errors = {
            id(curve): generator.standard_normal((replicates, len(curve.tokens)))
            for curve in model.curves
        }
        for context, weight in self.contexts.items():
            for curve, share in model.between(context, self._batch):
                low, high = (np.log(np.maximum(t, 1e-9)) for t in (curve.low_ms, curve.high_ms))
                points = curve.expected_ms * np.exp(errors[id(curve)] * deviation(low, high))
                points = np.vstack((curve.expected_ms, points))
                table[:, 1:] += weight * share * _interpolated(points, curve.tokens, sizes)
                fewest = max(fewest, curve.tokens[0])
        table[:, 1:fewest] = table[:, [fewest]] if model.drafts_block else np.inf
        return table

    @property
    def largest_size(self) -> int:
        """The most nodes that the profile can price."""
        return int(self.target_ms.shape[1]) - 1

    @property
    def catch_up_ms(self) -> FloatArray:
        """What the token before the root adds to the draft's first forward pass, [replicates + 1].

        0 where every first pass takes that token along, or where its time was not measured.
        """
        if self._profile.first_pass > 1 or self.draft_ms.shape[1] <= FIRST_WIDTH:
            return np.zeros(len(self.draft_ms))
        added_ms = self.draft_ms[:, FIRST_WIDTH] - self.draft_ms[:, 1]
        return np.where(np.isfinite(added_ms), np.maximum(added_ms, 0.0), 0.0)

    @property
    def can_draft(self) -> bool:
        """Whether the profile can price the first draft forward pass of a step."""
        return bool(np.isfinite(self.levels_ms(np.ones(1, np.int64))).all())

    @property
    def target_pass_ms(self) -> FloatArray:
        """A step without its drafting by its nodes, [replicates + 1, largest_size + 1]."""
        overhead = self._overhead
        sizes = np.arange(self.target_ms.shape[1])
        return np.asarray(self.target_ms + overhead.constant_ms + overhead.per_token_ms * sizes)

    @property
    def draft_pass_ms(self) -> FloatArray:
        """A draft pass after the first by its nodes, [replicates + 1, most tokens + 1]."""
        return np.asarray(self.draft_ms + self._overhead.per_level_ms)

    def first_pass_ms(self, behind: int) -> FloatArray:
        """A growing tree's first draft pass by what the cache lacks, [replicates + 1, behind + 1].

        Growing trees take along only what the draft's cache lacks, in every engine. The time
        includes what drafting costs once per step. For more tokens than were measured, the time of
        the most that were is drawn out in proportion.

        Args:
            behind: the most tokens that the draft's cache lacks besides the root.
        """
        tokens = np.arange(behind + 1) + 1
        most = self.draft_ms.shape[1] - 1
        passes_ms = self.draft_ms[:, np.minimum(tokens, most)] * np.maximum(tokens / most, 1.0)
        overhead = self._overhead
        overhead_ms = overhead.per_level_ms + overhead.drafting_ms
        return np.asarray(passes_ms + overhead_ms + overhead.catch_up_ms * (tokens > 1))

    def step_ms(self, tree: TokenTree) -> FloatArray:
        """t(T, L) of one tree, [replicates + 1].

        Raises:
            SequoiaError: the profile has no point for one of its forward passes.
        """
        passes = self._profile.draft_passes(tree)
        for model, table, tokens in (
            (self._profile.target, self.target_ms, tree.size),
            (self._profile.draft, self.draft_ms, max(passes, default=0)),
        ):
            if tokens >= table.shape[1] or np.isinf(table[0, tokens]):
                first = int(np.isfinite(table[0, 1:]).argmax()) + 1
                raise SequoiaError(
                    f"{model.model}: measured for {first} to {table.shape[1] - 1} tokens per "
                    f"forward pass, not for {tokens}; profile with more --tokens"
                )
        forwards_ms = self.target_ms[:, tree.size] + self.draft_ms[:, passes].sum(axis=1)
        return np.asarray(forwards_ms + self._overhead.at(tree.size, len(passes)))

    def steps_ms(self, sizes: IntArray, widths: IntArray) -> FloatArray:
        """Median t(T, L) of many trees, [...]; infinite where a forward pass was not measured.

        Args:
            sizes: nodes of each tree, [...].
            widths: internal nodes on each level of each tree, [..., levels].
        """
        return np.asarray(self.rest_ms(sizes) + self.levels_ms(widths).sum(axis=-1))

    def rest_ms(self, sizes: IntArray) -> FloatArray:
        """Median time of a step without its drafting, by size, [...]."""
        return _looked_up(self._rest_ms, sizes)

    def levels_ms(self, widths: IntArray) -> FloatArray:
        """Median drafting time at each level by its internal nodes, 0 where there are none.

        The first level includes what drafting costs once per step.

        Args:
            widths: internal nodes on each level, the first level's first, [..., levels].

        Returns:
            [..., levels].
        """
        if self._profile.draft.drafts_block:
            return np.where(widths > 0, self._block_ms(widths.shape[-1]), 0.0)
        first, later = self._level_ms
        times = (_looked_up(first, widths[..., :1]), _looked_up(later, widths[..., 1:]))
        levels_ms = np.concatenate(times, axis=-1)
        if self._profile.draft.reads_committed:
            levels_ms += np.where(widths > 0, self._committed_ms(widths.shape[-1]), 0.0)
        return levels_ms

    def narrower_widths(self, width: int) -> list[int]:
        """Widths to try instead of `width`: a little less, half, or just below a steep rise."""
        medians = self.draft_ms[0]
        rises = np.diff(medians[1 : min(width, len(medians) - 1) + 1])
        rises = np.where(np.isfinite(rises), rises, 0.0)
        below_rises: IntArray = np.zeros(0, np.int64)
        if len(rises):
            steepest = np.argsort(-rises, kind="stable")[:MAX_STEEP_RISES]
            below_rises = steepest[rises[steepest] > STEEP * max(rises.mean(), 0.0)] + 1
        candidates = (width - 2, width - 1, width // 2, *below_rises.tolist())
        return sorted({candidate for candidate in candidates if candidate >= 1})

    def _block_ms(self, levels: int) -> FloatArray:
        """What each level adds to the median time of a block drafter's pass, [levels].

        Infinite from the first level on that is deeper than was measured.
        """
        measured = self.draft_ms[0, 1 : levels + 1]
        added_ms = np.full(levels, np.inf)
        added_ms[: len(measured)] = np.diff(measured, prepend=0.0)
        added_ms[:1] += self._overhead.per_level_ms + self._overhead.drafting_ms
        return added_ms

    def _committed_ms(self, levels: int) -> FloatArray:
        """What each level adds to the median time of a head's first pass, [levels]: one more token
        that a step can commit. The first level's two are in its own time.

        Infinite from the first level on that is deeper than was measured.
        """
        measured = self.draft_ms[0, FIRST_WIDTH : FIRST_WIDTH + levels]
        measured = measured[np.isfinite(measured)]
        added_ms = np.full(levels, np.inf)
        added_ms[: len(measured)] = np.diff(measured, prepend=measured[:1])
        return added_ms

    @cached_property
    def _rest_ms(self) -> FloatArray:
        """Median time of a step without its drafting, by size; infinite past the last one."""
        sizes = np.arange(self.target_ms.shape[1])
        overhead = self._overhead.constant_ms + self._overhead.per_token_ms * sizes
        return np.append(self.target_ms[0] + overhead, np.inf)

    @cached_property
    def _level_ms(self) -> tuple[FloatArray, FloatArray]:
        """Median drafting time of a first and of a later level, by its internal nodes.

        Infinite for more tokens than were measured.
        """
        by_tokens = np.append(self.draft_ms[0] + self._overhead.per_level_ms, np.inf)
        by_tokens[0] = 0.0  # a level without a pass
        first_pass = self._profile.first_pass
        first, later = (
            np.array([pass_tokens(level, nodes, first_pass) for nodes in range(len(by_tokens))])
            for level in (0, 1)
        )
        first_ms, later_ms = _looked_up(by_tokens, first), _looked_up(by_tokens, later)
        return np.where(first > 0, first_ms + self._overhead.drafting_ms, first_ms), later_ms


def _looked_up(table: FloatArray, indices: IntArray) -> FloatArray:
    """Entries of a table, its last one for all larger indices; in the shape of the indices."""
    return table[np.minimum(indices, len(table) - 1)]


def _interpolated(points: FloatArray, tokens: list[int], sizes: IntArray) -> FloatArray:
    """Rows of values at `tokens`, [rows, points], read off at `sizes`, linear in between."""
    if len(tokens) == 1:
        return points[:, np.zeros(len(sizes), np.int64)]
    right = np.clip(np.searchsorted(tokens, sizes), 1, len(tokens) - 1)
    measured = np.asarray(tokens, dtype=np.float64)
    share = (sizes - measured[right - 1]) / (measured[right] - measured[right - 1])
    return np.asarray(points[:, right - 1] * (1 - share) + points[:, right] * share)
