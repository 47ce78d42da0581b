from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.plan.intervals import (
    TAIL,
    bootstrap,
    deviation,
    interval,
    ratio_interval,
    resampled_weights,
)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_an_interval_is_two_quantiles(values: list[float]) -> None:
    expected = np.quantile(values, [TAIL, 1 - TAIL])
    assert interval(np.array(values)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_deviation_gives_back_a_normal_interval() -> None:
    errors = np.random.default_rng(0).normal(3, 0.5, 20000)
    low, high = np.array(interval(errors))[:, None]
    assert deviation(low, high) == pytest.approx([0.5], rel=0.03)


def test_bootstrap_resamples_whole_documents() -> None:
    """Two kinds of document: a ratio's interval spans what mixtures of them can give."""
    tokens, steps = np.array([30.0, 10.0] * 20), np.array([10.0, 10.0] * 20)
    low, high = bootstrap(lambda weights: (weights @ tokens) / (weights @ steps), 40)
    error = np.std(tokens / steps) / np.sqrt(40)
    assert low == pytest.approx(2 - 1.96 * error, rel=0.02)
    assert high == pytest.approx(2 + 1.96 * error, rel=0.02)


def test_bootstrap_keeps_the_shape_of_a_statistic_and_repeats_by_seed() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    intervals = [bootstrap(lambda weights: weights @ values, 12, seed=seed) for seed in (1, 1, 2)]
    assert intervals[0][0].shape == (3,)
    assert (intervals[0][0] < intervals[0][1]).all()
    assert np.array_equal(intervals[0], intervals[1])
    assert not np.array_equal(intervals[0], intervals[2])


def test_each_resample_draws_as_many_documents_as_exist() -> None:
    weights = resampled_weights(np.random.default_rng(0), 7, 50)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()


@pytest.mark.parametrize("documents", [2, 4, 12])
@pytest.mark.parametrize("tail", [0.025, 0.004])
def test_a_ratio_is_missed_as_often_as_the_tails_say(documents: int, tail: float) -> None:
    """Whatever both sides have in common, as long documents do."""
    random, runs = np.random.default_rng(0), 2000
    shared, above, below = (np.exp(random.normal(0, 0.1, (runs, documents))) for _ in range(3))
    missed = np.array([0, 0])
    for common, one, other in zip(shared, above, below, strict=True):
        low, high = ratio_interval([3 * common * one], [common * other], tail)
        missed += np.array([low > 3, high < 3])
    assert (missed <= tail * runs + 3 * np.sqrt(tail * runs)).all()
    assert (missed >= 0.5 * tail * runs - 3 * np.sqrt(tail * runs)).all()


def test_a_ratio_s_interval_is_that_of_the_bootstrap_for_many_documents() -> None:
    random = np.random.default_rng(0)
    tokens, seconds = random.uniform(1, 3, (2, 300))
    other = seconds * random.uniform(0.5, 1.5, 300)
    low, high = ratio_interval([tokens, other], [seconds, tokens], TAIL)
    expected = bootstrap(lambda weights: (weights @ other) / (weights @ seconds), 300)
    assert [low, high] == pytest.approx([float(end) for end in expected], rel=0.01)
