"""The chains that `tune` measured, as a profile and an acceptance file that `solve` reads.

Knows chains and rounds. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sequoia_opt.measure.tune.tuning import ChainStudy
from sequoia_opt.plan import round_times
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.csv_import import curves_of
from sequoia_opt.plan.curves import ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead
from sequoia_opt.plan.rate_fit import bootstrap_rates
from sequoia_opt.plan.verifiers import GREEDY


@dataclass(frozen=True)
class Tried:
    """The models, prompts and machine of a run of `tune`, for its files.

    Attributes:
        target, draft, dataset: names.
        context: mean number of cached tokens.
        hardware, software, engine: as a profile has them.
        paths: the models' files by role, as far as they are known.
    """

    target: str
    draft: str
    dataset: str
    context: float
    hardware: Mapping[str, Any]
    software: Mapping[str, Any]
    engine: Mapping[str, Any]
    paths: Mapping[str, str]


def profile_of(study: ChainStudy, tried: Tried) -> LatencyProfile:
    """The rounds as a profile, in which a round includes the draft's passes and the overhead."""
    costs = study.costs
    context = round(tried.context)
    rounds: round_times.Points = {
        (1, context): {1: costs.plain_ms}
        | {n + 1: float(ms) for n, ms in zip(costs.lengths, costs.round_ms, strict=True)}
    }
    draft = ModelLatency(tried.draft, "", curves_of(round_times.no_draft_passes(rounds)))
    target_points = round_times.target_ms(rounds, draft, "the measured rounds")
    target = ModelLatency(tried.target, "", curves_of(target_points))
    for role, model in (("target", target), ("draft", draft)):
        if role in tried.paths:
            model.extra["path"] = tried.paths[role]
    return LatencyProfile(
        hardware=dict(tried.hardware),
        software=dict(tried.software),
        engine=dict(tried.engine),
        target=target,
        draft=draft,
        overhead={GREEDY: Overhead(0.0, 0.0, 0.0)},
        extra={"rounds": "served"},
    )


def acceptance_of(study: ChainStudy, tried: Tried) -> Acceptance:
    """The guesses of chains of fixed length as an acceptance file, with their rank traces."""
    traces = study.records[0].traces
    hits = np.array([[float(sum(trace))] for trace in traces])
    counts = np.array([len(trace) for trace in traces])
    low, high = bootstrap_rates(hits, counts)
    return Acceptance(
        rates=hits.sum(axis=0) / counts.sum(),
        low=low,
        high=high,
        traces=traces,
        positions=int(counts.sum()),
        target=tried.target,
        draft=tried.draft,
        dataset=tried.dataset,
        verifier=GREEDY,
        context=tried.context,
        extra={"mode": "continuations", "documents": len(traces)},
    )
