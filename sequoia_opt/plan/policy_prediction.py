"""What is predicted of policies on recorded documents, with the uncertainty of texts and timings.

Knows replays and times, of a model's steps and of those that look up first. Knows nothing of how
policies are searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.intervals import document_weights
from sequoia_opt.plan.joint_replay import JointCounts, JointReplay
from sequoia_opt.plan.joint_times import JointTimes
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.policy_replay import Counts, PolicyReplay
from sequoia_opt.plan.policy_times import PolicyTimes
from sequoia_opt.plan.recording import Recording
from sequoia_opt.types import FloatArray


class Predicted(NamedTuple):
    """What decoding with a policy takes.

    Attributes:
        counts: of each document.
        tokens, step_ms: [replicates + 1], per step.
    """

    counts: Counts | JointCounts
    tokens: FloatArray
    step_ms: FloatArray


class Predictor:
    """Predicts policies on one recording.

    Attributes:
        times: of the model's steps.
        weights: of the documents, [documents, replicates + 1]: those that `Acceptance.replicates`
            draws, so that all plans are judged on the same ones.
    """

    def __init__(
        self,
        recording: Recording,
        profile: LatencyProfile,
        overhead: str,
        contexts: Mapping[float, float],
        replicates: int,
        fill: bool,
    ) -> None:
        """Prepare it.

        Args:
            overhead, contexts, replicates: see `PolicyTimes`.
            fill: see `PolicyReplay.steps`.

        Raises:
            SequoiaError: see `PolicyTimes`.
        """
        self._recording, self._fill = recording, fill
        self._priced = profile, overhead, contexts, replicates
        self.times = PolicyTimes(*self._priced)
        random = np.random.default_rng([0, 1])
        self.weights = document_weights(random, recording.documents, replicates)

    @cached_property
    def joint_times(self) -> JointTimes:
        """Of steps that look up first."""
        return JointTimes(*self._priced)

    def predict(self, policy: Policy) -> Predicted:
        """What decoding with the policy takes.

        Raises:
            SequoiaError: the policy goes past what was recorded, or needs passes that the profile
                cannot price.
        """
        if policy.lookup is None:
            self.times.check(policy)
            counts = PolicyReplay(self._recording, policy.confidence).replay(policy, self._fill)
            return Predicted(counts, *self.times.predict(counts, self.weights))
        if self._recording.lookup is None:
            raise SequoiaError(
                "the plan looks up before it drafts, but no lookup was recorded; estimate with "
                "--draft lookup+MODEL"
            )
        self.joint_times.check(policy)
        both = JointReplay.of(self._recording, policy).replay(policy, self._fill)
        return Predicted(both, *self.joint_times.predict(both, self.weights))
