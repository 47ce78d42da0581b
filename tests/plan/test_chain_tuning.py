"""Settings of chains predicted from few runs, against decoding with each of them."""

from __future__ import annotations

import numpy as np
import pytest
from chain_model import ChainModel

from sequoia_opt.plan.chain_replay import ChainRecord
from sequoia_opt.plan.chain_tuning import ChainSetting, predictions
from sequoia_opt.plan.round_costs import RoundCosts

THRESHOLDS = (0.0, 0.3, 0.6)
LONGEST = 60  # longer than any run of right guesses
COSTS = {
    "a slow draft": RoundCosts(10.0, (1, 8), np.array([16.0, 58.0]), 5.0),
    "a fast draft": RoundCosts(10.0, (1, 8), np.array([11.5, 19.0]), 0.8),
    "a draft that does not pay": RoundCosts(10.0, (1, 8), np.array([25.0, 120.0]), 11.0),
}


def decoded_ms(texts: list[ChainModel], setting: ChainSetting, costs: RoundCosts) -> float:
    """The time of decoding step by step."""
    round_ms = costs.at(LONGEST)
    return sum(
        float(round_ms[drafted]) + costs.pass_ms * (passes > drafted)
        for text in texts
        for drafted, _, passes in text.steps(setting.guesses, setting.threshold)
    )


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("easy", [0.4, 0.7, 0.9])
def test_the_first_prediction_is_the_best_of_all_settings(name: str, easy: float) -> None:
    texts, costs = [ChainModel.drawn(seed, 140, easy) for seed in range(4)], COSTS[name]
    records = [
        ChainRecord(LONGEST, threshold, [text.counted(LONGEST, threshold) for text in texts])
        for threshold in THRESHOLDS
    ]
    grid = [ChainSetting(n, t) for n in range(1, 9) for t in THRESHOLDS]
    plain_ms = costs.plain_ms * sum(len(text.right) for text in texts)
    speedups = {setting: plain_ms / decoded_ms(texts, setting, costs) for setting in grid}
    found = [p for p in predictions(records, costs, {}) if p.setting.guesses <= 8]
    assert found[0].speedup == pytest.approx(max(speedups.values()))
    for prediction in found:
        assert prediction.speedup == pytest.approx(speedups[prediction.setting])
        assert prediction.low is not None
        assert prediction.low <= prediction.speedup <= prediction.high


def test_a_setting_that_was_timed_takes_what_it_took() -> None:
    texts = [ChainModel.drawn(seed, 100) for seed in range(2)]
    records = [ChainRecord(8, 0.0, [text.counted(8, 0.0) for text in texts])]
    costs, slow = COSTS["a fast draft"], ChainSetting(3)
    plain = {p.setting: p for p in predictions(records, costs, {})}
    found = {p.setting: p for p in predictions(records, costs, {slow: 1.25})}
    assert found[slow].speedup == pytest.approx(plain[slow].speedup / 1.25)
    assert found[slow].step_ms == pytest.approx(plain[slow].step_ms * 1.25)
    assert found[slow].timed
    assert found[ChainSetting(4)] == plain[ChainSetting(4)]


def test_one_text_gives_no_interval() -> None:
    records = [ChainRecord(8, 0.0, [ChainModel.drawn(0, 50).counted(8, 0.0)])]
    found = predictions(records, COSTS["a slow draft"], {})[0]
    assert (found.low, found.high) == (None, None)
