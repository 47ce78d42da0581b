from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.plan.intervals import TAIL, bootstrap, deviation, interval, resampled_weights


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
