"""The time of steps of a pair that looks up before its model drafts.

Knows counted forward passes and a profile's times. Knows nothing of how trees grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.draft_passes import NO_PASSES
from sequoia_opt.plan.joint_replay import JointCounts
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.policy import LACKING_BEHIND_LOOKUPS, Policy
from sequoia_opt.plan.policy_times import ADAPTIVE, PolicyTimes, StepPrices
from sequoia_opt.plan.walk import MOST_BEHIND_LOOKUPS
from sequoia_opt.types import FloatArray

LOOKUP = "lookup "  # prefix of the names of overheads of steps by a lookup


class JointTimes(StepPrices[JointCounts]):
    """The milliseconds of both kinds of steps.

    Attributes:
        model: times of steps in which the model drafts, and of plain ones.
        lookup: times of steps that verify the lookup's guesses; their draft passes take only
            their overhead.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        overhead: str,
        contexts: Mapping[float, float],
        replicates: int = 0,
    ) -> None:
        """Build the tables; see `PolicyTimes`.

        Raises:
            SequoiaError: see `PolicyTimes`.
        """
        self.model = PolicyTimes(profile, overhead, contexts, replicates, MOST_BEHIND_LOOKUPS)
        self.lookup = PolicyTimes(lookup_profile(profile), overhead, contexts, replicates)
        # If more tokens are missing than a first pass takes, a separate pass reads them before it.
        self.model.first_ms[:, LACKING_BEHIND_LOOKUPS:] += self.model.draft_ms[:, 1:2]

    @property
    def is_measured(self) -> bool:
        """Whether the overhead of adaptive steps was measured."""
        return self.model.is_measured

    def check(self, policy: Policy) -> None:
        """Refuse a policy that needs passes without a time.

        Raises:
            SequoiaError: it names them.
        """
        for times, part in zip((self.model, self.lookup), policy.parts, strict=True):
            times.check(part)

    def total_ms(self, counts: JointCounts, weights: FloatArray) -> FloatArray:
        """See `StepPrices`."""
        drafted = self.model.total_ms(counts.model, weights)
        level_ms = self.lookup.draft_ms[: weights.shape[1], 1]
        passed_over = (counts.passed_over @ weights) * level_ms
        return np.asarray(drafted + self.lookup.total_ms(counts.lookup, weights) + passed_over)


def lookup_profile(profile: LatencyProfile) -> LatencyProfile:
    """The profile of the target with the lookup alone.

    If the overhead of its steps was not measured, that of steps with the model is used.
    """
    measured = {
        ADAPTIVE + name.removeprefix(LOOKUP): overhead
        for name, overhead in profile.overhead.items()
        if name.startswith(LOOKUP)
    }
    draft = ModelLatency(profile.draft.model, profile.draft.fingerprint, [], passes=NO_PASSES)
    return replace(profile, draft=draft, overhead=profile.overhead | measured)
