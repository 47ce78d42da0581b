"""Which draft: each is profiled, sampled and solved for with one target.

Speeds are compared as ratios to plain decoding, which every profile measures anew: the machine
may be slower while it measures one draft than another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure import estimator, profiler
from sequoia_opt.measure.records import Document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve

Watch = Callable[[str], Any]
"""A label to a context manager that gives what is called with steps done and to do."""


@dataclass(frozen=True)
class Judged:
    """A draft, and what decoding with it is predicted to be.

    Attributes:
        draft: its name.
        parameters: how many it has.
    """

    draft: str
    parameters: int
    profile: LatencyProfile
    acceptance: Acceptance
    plan: Plan

    @property
    def choice(self) -> Candidate:
        """The tree that this draft would be used with."""
        return self.plan.choice

    @property
    def relative_cost(self) -> float:
        """One draft forward over one target forward, of a single token."""
        own, other = (
            float(model.at(np.array([1]), self.plan.context)[0])
            for model in (self.profile.draft, self.profile.target)
        )
        return own / other

    def document(self) -> dict[str, Any]:
        """For machines."""
        low, high = interval(self.choice.speedup[1:])
        return {
            "draft": self.draft,
            "parameters": self.parameters,
            "acceptance": self.acceptance.rates.tolist(),
            "relative_cost": self.relative_cost,
            "size": self.choice.tree.size,
            "depth": self.choice.tree.depth,
            "tokens": float(self.choice.tokens[0]),
            "speedup": float(self.choice.speedup[0]),
            "speedup_low": float(low),
            "speedup_high": float(high),
        }


def judge(
    pair: Pair,
    documents: Sequence[Document],
    dataset: str,
    sampling: Sampling,
    measuring: profiler.ProfileOptions,
    estimating: estimator.EstimateOptions,
    watch: Watch,
    note: Callable[[str], None] = lambda message: None,
) -> Judged:
    """Measure a pair and solve for it.

    Args:
        note: called with a line for each document that cannot be used.

    Raises:
        SequoiaError: what profiling, sampling or solving raises.
    """
    try:
        with watch(f"profiling {pair.draft_name}") as advance:
            profile = profiler.profile(pair, measuring, advance)
        with watch(f"sampling {pair.draft_name}") as advance:
            (acceptance,) = estimator.estimate(
                pair, documents, dataset, [sampling], estimating, advance, note
            )
    except torch.OutOfMemoryError as error:
        raise SequoiaError(f"{pair.draft_name}: out of memory ({one_line(error)[:120]})") from None
    plan = solve(profile, acceptance)
    return Judged(pair.draft_name, pair.draft.parameters, profile, acceptance, plan)


def ranked(judged: Sequence[Judged]) -> list[Judged]:
    """The fastest first."""
    return sorted(judged, key=lambda each: -float(each.choice.speedup[0]))
