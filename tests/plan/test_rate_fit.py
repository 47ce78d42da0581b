from __future__ import annotations

import numpy as np
import pytest

from sequoia_opt.plan.rate_fit import bootstrap_rates, fit_monotone


def test_ranks_that_were_never_accepted_allow_the_fit() -> None:
    generator = np.random.default_rng(0)
    rates = np.array([0.6, 0.1, *(0.05 / np.arange(1, 31) ** 1.2)])
    rates = rates / max(1.0, rates.sum())
    fits = 0
    for _ in range(20):
        counts = generator.multinomial(128, np.append(rates, 1 - rates.sum()), size=53)[:, :-1]
        low, high = bootstrap_rates(counts.astype(float), [128] * 53, resamples=300)
        measured = counts.sum(axis=0) / (53 * 128)
        fits += fit_monotone(measured, low, high, 53 * 128)[1] == "isotonic"
    assert fits >= 18


def test_bootstrap_interval_covers_the_truth() -> None:
    """Over many samples of documents that differ, about 95% of intervals contain the true rate."""
    generator = np.random.default_rng(1)
    covered = 0
    for sample in range(200):
        document_rates = generator.beta(6, 4, size=40)  # their mean is 0.6
        sums = generator.binomial(50, document_rates)[:, None].astype(float)
        low, high = bootstrap_rates(sums, [50] * 40, resamples=400, seed=sample)
        covered += bool(low[0] <= 0.6 <= high[0])
    assert 178 <= covered <= 199


def test_the_fit_is_used_where_the_sample_allows_it() -> None:
    measured = np.array([0.6, 0.10, 0.11, 0.02])
    near = fit_monotone(measured, measured - 0.02, measured + 0.02, positions=1000)
    assert near[1] == "isotonic"
    assert (np.diff(near[0]) <= 1e-12).all()
    assert near[0][0] == pytest.approx(0.6)
    assert near[0][1] == pytest.approx(0.105, abs=2e-3)
    sharp = fit_monotone(measured, measured - 1e-4, measured + 1e-4, positions=10**7)
    assert sharp[1] == "raw"
    assert (sharp[0] == measured).all()
    falling = np.array([0.5, 0.3, 0.3])
    assert fit_monotone(falling, falling, falling, 10)[0] is falling


def test_a_true_vector_may_rise() -> None:
    """P = (.1, .9), Q = (.9, .1): the second draw is accepted more often than the first."""
    measured = np.array([0.2, 0.8])
    rates, fit = fit_monotone(measured, measured - 0.03, measured + 0.03, positions=5000)
    assert fit == "raw"
    assert rates.tolist() == [0.2, 0.8]
