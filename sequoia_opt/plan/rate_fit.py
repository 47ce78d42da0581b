"""From a sample of documents to acceptance rates to plan with: intervals and the monotone fit."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sequoia_opt.plan.intervals import RESAMPLES, TAIL, bootstrap
from sequoia_opt.types import FloatArray


def bootstrap_rates(
    sums: FloatArray, counts: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """95% intervals of the rates, with whole documents resampled.

    Args:
        sums: [documents, W], each document's sum of acceptance over its positions.
        counts: [documents], each document's number of positions.

    Returns:
        low, high: [W].
    """
    positions = np.asarray(counts, dtype=np.float64)

    def rates(weights: NDArray[np.int64]) -> FloatArray:
        return np.asarray((weights @ sums) / np.maximum(weights @ positions, 1)[:, None])

    return bootstrap(rates, len(sums), resamples, seed)


def fit_monotone(
    measured: FloatArray, low: FloatArray, high: FloatArray, positions: int
) -> tuple[FloatArray, str]:
    """Rates to plan with: the isotonic fit, unless the sample contradicts it.

    A measured vector is noisy, and a monotone one can be solved best-first; but true rates need
    not fall with the rank. The fit weighs each rank by the inverse of its sampling variance. It
    is taken if it stays within intervals that hold for all W ranks together with a probability
    of 95%: the given intervals, widened as those of normal quantities by Bonferroni's bound. The
    upper end of a rank that was never accepted is 3 / positions, not 0.

    Args:
        measured, low, high: the rates and their 95% intervals, [W].
        positions: how many positions were sampled.

    Returns:
        The fitted rates [W] and "isotonic", or `measured` and "raw".
    """
    if (np.diff(measured) <= 0).all():
        return measured, "raw"
    from scipy.optimize import isotonic_regression

    smoothed = (measured * positions + 0.5) / (positions + 1)
    weights = positions / (smoothed * (1 - smoothed))
    fitted = isotonic_regression(measured, weights=weights, increasing=False).x
    widened = NormalDist().inv_cdf(1 - TAIL / len(measured)) / NormalDist().inv_cdf(1 - TAIL)
    lowest = measured - widened * (measured - low)
    highest = np.maximum(measured + widened * (high - measured), 3 / positions)
    if ((fitted < lowest) | (fitted > highest)).any():
        return measured, "raw"
    return np.asarray(fitted), "isotonic"
