"""Which chain an engine should draft: its length and its threshold, from few runs.

Knows recorded chains and the costs of rounds. Knows nothing of how either is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.plan.chain_replay import ChainRecord
from sequoia_opt.plan.intervals import bootstrap
from sequoia_opt.plan.round_costs import RoundCosts
from sequoia_opt.types import FloatArray


@dataclass(frozen=True)
class ChainSetting:
    """An engine's settings for its chains.

    Attributes:
        guesses: the most guesses in a step.
        threshold: the draft's probability below which a step stops guessing.
    """

    guesses: int
    threshold: float = 0.0


@dataclass(frozen=True)
class ChainPrediction:
    """The predicted speed of a setting on the recorded texts.

    Attributes:
        tokens_per_step, step_ms: over all texts.
        speedup: over plain decoding.
        low, high: its 95% interval, by resampling texts; None for a single text.
        timed: whether the setting's own rounds were timed.
    """

    setting: ChainSetting
    tokens_per_step: float
    step_ms: float
    speedup: float
    low: float | None
    high: float | None
    timed: bool

    @property
    def tokens_per_second(self) -> float:
        """Predicted speed."""
        return 1000 * self.tokens_per_step / self.step_ms


def predictions(
    records: Sequence[ChainRecord], costs: RoundCosts, factors: Mapping[ChainSetting, float]
) -> list[ChainPrediction]:
    """Predictions for all settings that the records cover, the fastest first.

    Of equally fast settings the one with fewer guesses comes first.

    Args:
        records: one for each threshold, of the same texts.
        factors: measured over fitted time, for the settings whose own rounds were timed.
    """
    every = [
        _predicted(record, guesses, costs, factors)
        for record in records
        for guesses in range(1, record.guesses + 1)
    ]
    return sorted(every, key=lambda prediction: -prediction.speedup)


def _predicted(
    record: ChainRecord, guesses: int, costs: RoundCosts, factors: Mapping[ChainSetting, float]
) -> ChainPrediction:
    walk = record.walk(guesses)
    setting = ChainSetting(guesses, record.threshold)
    total_ms = costs.total_ms(walk) * factors.get(setting, 1.0)

    def speedup(weights: NDArray[np.int64]) -> FloatArray:
        return np.asarray((weights @ walk.tokens) * costs.plain_ms / (weights @ total_ms))

    texts = len(walk.tokens)
    ends = bootstrap(speedup, texts) if texts > 1 else (None, None)
    low, high = (None if end is None else float(end) for end in ends)
    return ChainPrediction(
        setting,
        tokens_per_step=float(walk.tokens.sum() / walk.steps.sum()),
        step_ms=float(total_ms.sum() / walk.steps.sum()),
        speedup=float(speedup(np.ones(texts, np.int64))),
        low=low,
        high=high,
        timed=setting in factors,
    )
