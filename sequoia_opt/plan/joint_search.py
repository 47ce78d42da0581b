"""Finds when to look up and when to draft with the model, by replay of both recordings.

Both sides share one λ, tokens per millisecond over all steps. A lookup's tree is verified if its
expected tokens less λ times its time exceed those of an average step of the model, a number that
is searched for. The thresholds of both policies follow from λ, as in `adaptive`. Knows nothing of
files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.adaptive import (
    DIGITS,
    LEAST_GAIN,
    Limits,
    Multipliers,
    PolicySearch,
    Solution,
    always,
    dinkelbach,
)
from sequoia_opt.plan.envelope import best_pause, miss_ratio
from sequoia_opt.plan.joint_replay import JointCounts, JointReplay
from sequoia_opt.plan.joint_times import JointTimes
from sequoia_opt.plan.policy import LookupFirst, Pause, Policy
from sequoia_opt.plan.walk import Steps

SURPLUSES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Values to start from for `Rule.surplus`."""
FINE = (1.5, 1.2)  # factors between neighbours, coarse and then fine
MOST_ROUNDS = 4  # rounds with each factor


@dataclass(frozen=True)
class Rule:
    """The numbers that define both policies and the choice between them.

    Attributes:
        model, lookup: multipliers of the two policies' thresholds.
        surplus: tokens less λ times time of an average step of the model, beyond a plain step's.
        base: λ, tokens per millisecond.
    """

    model: Multipliers
    lookup: Multipliers
    surplus: float
    base: float

    def neighbours(self, factor: float, widths: tuple[int, int]) -> list[Rule]:
        """This rule and the ones that differ in a single number by a factor.

        Args:
            widths: how many widths of a level either policy may choose from.
        """
        of_model, of_lookup = widths
        return [
            *(replace(self, model=m) for m in self.model.neighbours(factor, of_model)),
            *(replace(self, lookup=m) for m in self.lookup.neighbours(factor, of_lookup)[1:]),
            *(replace(self, surplus=self.surplus * by) for by in (factor, 1 / factor)),
        ]


@dataclass(frozen=True)
class JointSolution:
    """A policy with a lookup, its counts on the documents that it was fitted to, and its λ."""

    policy: Policy
    counts: JointCounts
    rate: float


class JointSearch:
    """Searches for the best rule on one set of documents."""

    def __init__(self, model: PolicySearch, lookup: PolicySearch, times: JointTimes) -> None:
        """Combine the searches of both kinds of steps.

        Args:
            times: times of both kinds of steps.
        """
        self._model, self._lookup, self._times = model, lookup, times
        self._replay = JointReplay(model.replay, lookup.replay)
        self._steps: dict[tuple[bool, Policy], Steps] = {}
        self._totals: dict[Policy, tuple[float, float]] = {}

    def best(self, model: Solution, lookup: Solution) -> JointSolution:
        """The fastest rule near two policies, each of which was solved alone."""
        parts = model.policy, lookup.policy
        widths = len(model.policy.expand), len(lookup.policy.expand)

        def gains(rule: Rule) -> tuple[float, float]:
            return self._totals_of(self._policy(rule, *parts))

        def starts(rate: float) -> list[Rule]:
            return [Rule(model.multipliers, lookup.multipliers, s, rate) for s in SURPLUSES]

        at, rate = dinkelbach(starts, gains, max(model.rate, lookup.rate))
        for factor in FINE:
            for _ in range(MOST_ROUNDS):
                beside = at.neighbours(factor, widths)
                chosen, chosen_rate = dinkelbach(always(beside), gains, rate)
                if chosen_rate <= rate * (1 + LEAST_GAIN):
                    break
                at, rate = chosen, chosen_rate
        return self._solution(self._policy(at, *parts))

    def with_pause(self, solution: JointSolution) -> JointSolution:
        """The solution with the pause that fits the steps which the lookup leaves to the model."""
        policy = solution.policy
        drafting = self._kept_steps(self._model, replace(policy, lookup=None, pause=None))

        def paused(pause: Pause | None) -> JointSolution:
            return self._solution(replace(policy, pause=pause))

        ratio = miss_ratio(self._model, drafting)
        return paused(best_pause(lambda pause: paused(pause).rate, ratio))

    def lookup_alone(self, model: Solution, lookup: Solution) -> JointSolution:
        """The lookup's own plan, for a pair whose model then drafts nothing."""
        alone = replace(lookup.policy, pause=None)
        nothing = tuple((size, 0.0) for size in alone.sizes[1:])
        silent = replace(model.policy, first=1.0, pause=None)
        return self._solution(replace(silent, lookup=LookupFirst(alone, nothing)))

    def _policy(self, rule: Rule, model: Policy, lookup: Policy) -> Policy:
        """The policy of a rule, within the envelopes of two policies."""
        drafting = self._model.policy(_limits(model), rule.base, rule.model)
        looking_up = self._lookup.policy(_limits(lookup), rule.base, rule.lookup)
        worth = LookupFirst(looking_up, self._worth(looking_up, rule))
        return replace(drafting, pause=model.pause, lookup=worth)

    def _worth(self, lookup: Policy, rule: Rule) -> tuple[tuple[int, float], ...]:
        """The least expected guesses for which a tree of each size is verified.

        So many guesses pay for the tree's time beyond a plain step's, and for the model's step.
        """
        plain_ms = float(self._times.model.target_ms[0, 1])
        worth = []
        for size in lookup.sizes[1:]:
            more_ms = float(self._times.lookup.target_ms[0, size]) - plain_ms
            least = max(rule.surplus + rule.base * more_ms, 0.0)
            worth.append((size, rounded(least, DIGITS)))
        return tuple(worth)

    def _totals_of(self, policy: Policy) -> tuple[float, float]:
        """Tokens and milliseconds of a policy on all documents."""
        if policy not in self._totals:
            counts = self._counts(policy)
            milliseconds = self._times.total_ms(counts, np.ones((len(counts.steps), 1)))[0]
            self._totals[policy] = float(counts.tokens.sum()), max(float(milliseconds), 1e-9)
        return self._totals[policy]

    def _solution(self, policy: Policy) -> JointSolution:
        counts = self._counts(policy)
        return JointSolution(policy, counts, self._times.rate(counts))

    def _counts(self, policy: Policy) -> JointCounts:
        """What decoding all documents takes."""
        assert policy.lookup is not None
        drafting = replace(policy, lookup=None, pause=None)
        model = self._kept_steps(self._model, drafting)
        return self._replay.walk(
            policy, model, self._kept_steps(self._lookup, policy.lookup.policy)
        )

    def _kept_steps(self, search: PolicySearch, policy: Policy) -> Steps:
        """The step from each position, replayed once."""
        key = search is self._lookup, policy
        if key not in self._steps:
            self._steps[key] = search.steps(policy)
        return self._steps[key]


def _limits(policy: Policy) -> Limits:
    """The depth, ranks, widths and sizes of a policy, as limits of others."""
    widths = tuple(width for width, _ in policy.expand)
    return Limits(policy.depth, policy.ranks, widths, policy.sizes)
