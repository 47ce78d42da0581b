"""Finds the policy that decodes fastest, by replay of recorded drafts.

Decoding is a renewal process: tokens per millisecond is E[tokens] / E[time] of a step, and the
policy that maximises this ratio λ maximises E[tokens] - λ E[time] (renewal reward). Dinkelbach's
iteration ("On nonlinear fractional programming", 1967) finds λ. The thresholds follow from λ and
the times of passes, up to multipliers that a search settles. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import Counts, PolicyReplay, Steps
from sequoia_opt.plan.policy_times import PolicyTimes

DIGITS = 3  # of a threshold
COARSE = (0.2, 0.45, 1.0, 2.2, 5.0)  # multipliers that the search starts from
FINE = (1.5, 1.25, 1.1)  # factors between neighbouring multipliers, one after the other
MOST_ROUNDS = 8  # of the search with one factor
LEAST_GAIN = 2e-4  # of a round's speed, that it goes on for
CLOSE = 1e-6  # relative difference of two λ at which the iteration ends
COARSELY_CLOSE = 0.1  # the same where multipliers are far apart
USUAL_SIZE = 16  # nodes of a target pass, at most
LAST_FIRST = 0.999  # the largest threshold of the first level at which steps draft at all

Proposal = TypeVar("Proposal", bound=Hashable)


def dinkelbach(
    proposals: Callable[[float], Sequence[Proposal]],
    gains: Callable[[Proposal], tuple[float, float]],
    start: float,
    close: float = CLOSE,
) -> tuple[Proposal, float]:
    """The proposal of the highest ratio of what it gains to what it costs, and that ratio λ.

    With proposals that do not depend on λ it is the best of all of them, up to `close`.

    Args:
        proposals: at a λ.
        gains: of a proposal: what it gains, and what it costs, above 0.
        start: λ to begin with.
        close: relative difference between a λ and the one that follows from it, at which the
            iteration ends.
    """
    rate = start
    best: tuple[Proposal, float] | None = None
    while True:
        chosen = max(proposals(rate), key=lambda p: gains(p)[0] - rate * gains(p)[1])
        gain, cost = gains(chosen)
        reached = gain / cost
        if best is not None and reached <= best[1]:
            return best
        best = chosen, reached
        if abs(reached - rate) <= close * rate:
            return best
        rate = reached


def always(proposals: Sequence[Proposal]) -> Callable[[float], Sequence[Proposal]]:
    """The same proposals at every λ."""
    return lambda rate: proposals


@dataclass(frozen=True)
class Limits:
    """What a policy may use.

    Attributes:
        depth: levels at most.
        ranks: children of a node at most.
        widths: nodes of a draft pass, ascending from 1.
        sizes: nodes of a target pass, ascending from 1.
    """

    depth: int
    ranks: int
    widths: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Multipliers:
    """What the thresholds that follow from λ are multiplied by.

    Attributes:
        further: for another level.
        wider: for more nodes on a level.
        verify: for a guess to be verified.
    """

    further: float = 1.0
    wider: float = 1.0
    verify: float = 1.0

    def neighbours(self, factor: float, widths: int) -> list[Multipliers]:
        """These and the ones that differ in a single one by a factor."""
        names = ("further", "verify") if widths == 1 else ("further", "wider", "verify")
        others = [
            replace(self, **{name: getattr(self, name) * by})
            for name in names
            for by in (factor, 1 / factor)
        ]
        return [self, *others]

    def around(self, widths: int, settled: bool) -> list[Multipliers]:
        """Where the search begins.

        Args:
            settled: whether those that do not concern widths are good already.
        """
        wider = (1.0,) if widths == 1 else COARSE
        if settled:
            return [replace(self, wider=by) for by in wider]
        return [Multipliers(f, w, v) for f in COARSE for w in wider for v in COARSE]


@dataclass(frozen=True)
class Solution:
    """A policy, what it took on the documents that it was fitted to, and its λ there.

    Attributes:
        rate: tokens per millisecond.
        multipliers, base: what the policy's thresholds follow from, with the λ that is in them.
    """

    policy: Policy
    counts: Counts
    rate: float
    multipliers: Multipliers
    base: float


class PolicySearch:
    """Searches policies on one set of documents, each policy replayed once."""

    def __init__(self, replay: PolicyReplay, times: PolicyTimes, fill: bool) -> None:
        """Keep what all searches share.

        Args:
            fill: whether guesses that were not offered fill a target pass, see `Growth.finish`.
        """
        self.replay, self.times, self.fill = replay, times, fill
        self._counts: dict[Policy, Counts] = {}
        self._totals: dict[Policy, tuple[float, float]] = {}

    def best(self, limits: Limits, start: float, near: Solution | None = None) -> Solution:
        """The fastest policy within limits.

        Args:
            start: tokens per millisecond to begin with.
            near: a policy with other limits, whose multipliers are about right.
        """

        def gains(proposal: tuple[Multipliers, float]) -> tuple[float, float]:
            multipliers, base = proposal
            return self.totals(self.policy(limits, base, multipliers))

        widths = len(limits.widths)
        if near is None:
            coarse = Multipliers().around(widths, settled=False)
            (at, _), rate = dinkelbach(
                lambda rate: [(m, rate) for m in coarse], gains, start, COARSELY_CLOSE
            )
            begin = dinkelbach(lambda rate: [(at, rate)], gains, rate)
        else:
            around = [(m, near.base) for m in near.multipliers.around(widths, settled=True)]
            begin = dinkelbach(always(around), gains, start)
        (at, base), rate = begin
        for factor in FINE if near is None else FINE[-1:]:
            for _ in range(MOST_ROUNDS):
                beside = [(m, base) for m in at.neighbours(factor, widths)]
                (chosen, _), chosen_rate = dinkelbach(always(beside), gains, rate)
                if chosen_rate <= rate * (1 + LEAST_GAIN):
                    break
                at, rate = chosen, chosen_rate
        return self.solution(self.policy(limits, base, at), at, base)

    def solution(self, policy: Policy, multipliers: Multipliers, base: float) -> Solution:
        """A policy with what it takes."""
        counts = self.counts(policy)
        return Solution(policy, counts, self.times.rate(counts), multipliers, base)

    def changed(self, solution: Solution, **changes: Any) -> Solution:
        """The solution with some fields of its policy changed."""
        policy = replace(solution.policy, **changes)
        return self.solution(policy, solution.multipliers, solution.base)

    def steps(self, policy: Policy) -> Steps:
        """The step from each position."""
        return self.replay.steps(policy, self.fill)

    def counts(self, policy: Policy) -> Counts:
        """What decoding the documents takes."""
        if policy not in self._counts:
            self._counts[policy] = self.replay.replay(policy, self.fill)
        return self._counts[policy]

    def totals(self, policy: Policy) -> tuple[float, float]:
        """Tokens and milliseconds of a policy on all documents."""
        if policy not in self._totals:
            counts = self.counts(policy)
            ones = np.ones((len(counts.steps), 1))
            milliseconds = float(self.times.total_ms(counts, ones)[0])
            self._totals[policy] = float(counts.tokens.sum()), max(milliseconds, 1e-9)
        return self._totals[policy]

    def policy(self, limits: Limits, rate: float, multipliers: Multipliers) -> Policy:
        """The policy whose thresholds follow from λ.

        Another level is drafted where the probability that its nodes are reached, times the
        tokens that a reached node's level brings, exceeds λ times the time of its draft pass. A
        guess is verified where the probability that it is reached exceeds λ times the time that
        one more node of a target pass takes.

        Args:
            rate: λ, tokens per millisecond.
        """
        draft_ms = self.times.draft_ms[0]
        brings = self._brings(limits.ranks, rate)
        single_ms = max(float(draft_ms[1]), 0.0)
        expand = []
        for width in limits.widths:
            more_ms = max(float(draft_ms[width]) - single_ms, 0.0)
            cost_ms = multipliers.further * single_ms + multipliers.wider * more_ms
            expand.append((width, rounded(rate * cost_ms / brings, DIGITS)))
        first = rate * max(float(self.times.first_ms[0, 0]), 0.0) / brings
        offer = rate * self._node_ms * multipliers.verify
        return Policy(
            confidence=self.replay.confidence,
            depth=limits.depth,
            ranks=limits.ranks,
            expand=tuple(expand),
            first=min(rounded(first, DIGITS), LAST_FIRST),
            offer=min(rounded(offer, DIGITS), 1.0),
            sizes=limits.sizes,
        )

    @cached_property
    def _node_ms(self) -> float:
        """What one more node of a target pass takes, on average over small sizes."""
        target_ms, sizes = self.times.target_ms[0], self.times.measured_sizes
        size = max(size for size in sizes if size <= USUAL_SIZE)
        return max(float(target_ms[size] - target_ms[1]) / max(size - 1, 1), 0.0)

    def _brings(self, ranks: int, rate: float) -> float:
        """Tokens that drafting a level below a reached node brings, with what follows from it.

        With probability p a guess is accepted; then another level may be drafted, which brings p
        less λ times its time, where that pays. What lies below that level is left to the
        multipliers.
        """
        accepted = self._accepted_below[ranks - 1]
        surplus = max(accepted - rate * float(self.times.draft_ms[0, 1]), 0.0)
        return max(accepted * (1 + surplus), 1e-3)

    @cached_property
    def _accepted_below(self) -> list[float]:
        """How often one of a node's first k guesses is accepted, [K], behind an accepted one."""
        ranks = self.replay.recording.ranks.astype(np.int64)
        behind = ranks[1:][ranks[:-1] > 0]
        behind = behind if len(behind) else ranks
        most = self.replay.recording.width_of_node
        return [
            float(((behind > 0) & (behind <= k)).mean()) if len(behind) else 0.0
            for k in range(1, most + 1)
        ]
