"""Which draft decodes fastest: each is profiled, sampled and solved for with the same target.

Speeds are compared as ratios to plain decoding, which every profile measures again, because the
machine may be slower while it measures one draft than while it measures another.

Knows pairs, profiles and plans. Knows nothing of where files go or of how results are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure import estimator, profiler
from sequoia_opt.measure.progress import Note, ProgressBar, no_note
from sequoia_opt.measure.records import Document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import interval
from sequoia_opt.plan.judge import Candidate
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve


@dataclass(frozen=True)
class DraftResult:
    """What was measured of a draft, and the plan that follows.

    Attributes:
        draft: the draft's short name.
        parameters: the draft's number of parameters; 0 of a lookup.
    """

    draft: str
    parameters: int
    profile: LatencyProfile
    acceptance: Acceptance
    plan: Plan

    @property
    def choice(self) -> Candidate:
        """The tree to use with this draft."""
        return self.plan.choice

    @property
    def relative_cost(self) -> float:
        """Time of a draft's forward pass over the target's, for a single token."""
        draft_ms, target_ms = (
            float(model.at(np.array([1]), self.plan.context)[0])
            for model in (self.profile.draft, self.profile.target)
        )
        return draft_ms / target_ms

    @property
    def speedup_interval(self) -> tuple[float, float]:
        """95% interval of the predicted speedup."""
        return interval(self.choice.speedup[1:])

    def document(self) -> dict[str, Any]:
        """The numbers, for --json."""
        low, high = self.speedup_interval
        return {
            "draft": self.draft,
            "parameters": self.parameters,
            "acceptance": self.acceptance.rates.tolist(),
            "relative_cost": self.relative_cost,
            "size": self.choice.tree.largest_size,
            "depth": self.choice.tree.largest_depth,
            "tokens": float(self.choice.tokens[0]),
            "speedup": float(self.choice.speedup[0]),
            "speedup_low": low,
            "speedup_high": high,
        }


def measure_draft(
    pair: Pair,
    documents: Sequence[Document],
    dataset: str,
    sampling: Sampling,
    profiling: profiler.ProfileOptions,
    estimating: estimator.EstimateOptions,
    progress_bar: ProgressBar,
    note: Note = no_note,
) -> DraftResult:
    """Profile a pair, estimate its acceptance and solve for it.

    Args:
        note: called with one line for each document that is left out.

    Raises:
        SequoiaError: the pair does not fit into memory, or profiling, estimating or solving fails.
    """
    try:
        with progress_bar(f"profiling {pair.draft_name}") as progress:
            profile = profiler.profile(pair, profiling, progress)
        with progress_bar(f"estimating {pair.draft_name}") as progress:
            (acceptance,) = estimator.estimate(
                pair, documents, dataset, [sampling], estimating, progress, note
            )
    except torch.OutOfMemoryError as error:
        raise SequoiaError(f"{pair.draft_name}: out of memory ({one_line(error)[:120]})") from None
    plan = solve(profile, acceptance, recording=acceptance.recording)
    model = pair.drafter.model
    parameters = 0 if model is None else model.parameters
    return DraftResult(pair.draft_name, parameters, profile, acceptance, plan)


def ranked(results: Sequence[DraftResult]) -> list[DraftResult]:
    """Sort by predicted speedup, the fastest first."""
    return sorted(results, key=lambda result: -float(result.choice.speedup[0]))


def probability_faster(first: DraftResult, second: DraftResult) -> float:
    """Probability that the first draft is faster: share of pairs of their bootstrap replicates."""
    speedups, others = first.choice.speedup[1:], second.choice.speedup[1:]
    return float((speedups[:, None] > others[None, :]).mean())
