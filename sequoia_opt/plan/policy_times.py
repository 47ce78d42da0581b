"""What a policy's steps take: counted forward passes times the measured milliseconds of each.

Knows counts and tables of times. Knows nothing of how trees grow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import MOST_BEHIND, Counts
from sequoia_opt.plan.step_times import StepTimes
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.types import FloatArray

ADAPTIVE = "adaptive "  # what the name of an adaptive step's overhead begins with


class Counted(Protocol):
    """What a walk counted of each document, [documents]."""

    @property
    def tokens(self) -> IntArray:
        """Tokens that the steps committed."""
        ...

    @property
    def steps(self) -> IntArray:
        """Steps."""
        ...


AnyCounts = TypeVar("AnyCounts", bound=Counted)


class StepPrices(ABC, Generic[AnyCounts]):
    """The time of counted steps, and what follows from it."""

    @abstractmethod
    def total_ms(self, counts: AnyCounts, weights: FloatArray) -> FloatArray:
        """The time of all counted steps, [replicates + 1], or [1] for weights of [documents, 1].

        Args:
            weights: of the documents, [documents, replicates + 1].
        """

    def rate(self, counts: AnyCounts) -> float:
        """Tokens per millisecond over all documents; 0 where no step counts."""
        milliseconds = self.total_ms(counts, np.ones((len(counts.steps), 1)))[0]
        return float(counts.tokens.sum() / milliseconds) if milliseconds else 0.0

    def predict(self, counts: AnyCounts, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tokens per step and milliseconds per step, [replicates + 1] each.

        A resample without any step that counts is as the estimate.
        """
        steps = counts.steps @ weights
        used = np.where((steps > 0)[None], weights, 1.0)
        steps = np.maximum(counts.steps @ used, 1.0)
        return counts.tokens @ used / steps, self.total_ms(counts, used) / steps


class PolicyTimes(StepPrices[Counts]):
    """The milliseconds of each kind of forward pass, with a step's overhead.

    Attributes:
        target_ms: [replicates + 1, largest size + 1], a target pass and all of a step that is not
            drafting, by nodes.
        draft_ms: [replicates + 1, most tokens + 1], a draft pass after a step's first, by nodes.
        first_ms: [replicates + 1, most_behind + 1], a step's first draft pass, by the number of
            tokens that the draft's cache lacks besides the root.
        change_ms: a step whose target pass has another size than the one before, besides.
        is_measured: whether the overhead of adaptive steps was measured; else it is that of
            static ones.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        overhead: str,
        contexts: Mapping[float, float],
        replicates: int = 0,
        most_behind: int = MOST_BEHIND,
    ) -> None:
        """Build the tables from the profile; its timings are resampled as those of `StepTimes`.

        Args:
            overhead: name of the overhead of static steps, see `latency.overhead_name`.
            contexts: weight of each context length.
            most_behind: tokens that the draft's cache may lack besides the root.

        Raises:
            SequoiaError: see `StepTimes`.
        """
        name = ADAPTIVE + overhead
        self.is_measured = name in profile.overhead
        self.change_ms = profile.overhead[name].change_ms if self.is_measured else 0.0
        self._profile = profile
        times = StepTimes(profile, name if self.is_measured else overhead, contexts, 1, replicates)
        self.target_ms = times.target_pass_ms
        self.draft_ms = times.draft_pass_ms
        self.first_ms = times.first_pass_ms(most_behind)

    @cached_property
    def measured_sizes(self) -> list[int]:
        """Nodes of the target passes that were measured, ascending."""
        curves = self._profile.target.of_batch(1)
        sizes = {tokens for curve in curves for tokens in curve.tokens}
        return [size for size in sorted(sizes) if self._has(self.target_ms, size)]

    def has_width(self, width: int) -> bool:
        """Whether a draft pass over so many nodes has a time."""
        return self._has(self.draft_ms, width)

    def check(self, policy: Policy) -> None:
        """Refuse a policy that needs passes without a time.

        Raises:
            SequoiaError: it names them.
        """
        for model, table, name, numbers in (
            (self._profile.target, self.target_ms, "sizes", policy.sizes),
            (self._profile.draft, self.draft_ms, "widths", [w for w, _ in policy.expand]),
        ):
            lacking = [number for number in numbers if not self._has(table, number)]
            if lacking:
                raise SequoiaError(
                    f"policy: {name}: found {', '.join(map(str, lacking))}, which the profile of "
                    f"{model.model} has not measured; profile with more --tokens"
                )

    def total_ms(self, counts: Counts, weights: FloatArray) -> FloatArray:
        """See `StepPrices`."""
        total = self.change_ms * (counts.changes @ weights)
        for numbers, table in (
            (counts.sizes, self.target_ms),
            (counts.widths, self.draft_ms),
            (counts.first, self.first_ms),
        ):
            used = np.flatnonzero(numbers.any(axis=0))
            weighted = weights.T @ numbers[:, used]
            total += (weighted * table[: weights.shape[1], used]).sum(axis=1)
        return total

    @staticmethod
    def _has(table: FloatArray, number: int) -> bool:
        return number < table.shape[1] and bool(np.isfinite(table[0, number]))
