"""How sure a number is: between 95 % intervals, standard deviations and replicates."""

from __future__ import annotations

import numpy as np

from sequoia_opt.types import FloatArray

REPLICATES = 200
TAIL = 0.025  # of a 95 % interval, on either side
_WIDTH = 3.92  # of a normal 95 % interval, in standard deviations


def deviation(low: FloatArray, high: FloatArray) -> FloatArray:
    """Standard deviation of a normal quantity with these 95 % intervals."""
    return np.asarray(np.maximum(high - low, 0.0) / _WIDTH)


def interval(replicates: FloatArray) -> tuple[float, float]:
    """95 % interval of a quantity from its replicates [count]: two of their quantiles.

    Linear between order statistics, as `numpy.quantile`, whose first call loads masked arrays:
    a tenth of the time that `solve` takes.
    """
    last = len(replicates) - 1
    low, high = np.interp(
        [TAIL * last, (1 - TAIL) * last], np.arange(last + 1), np.sort(replicates)
    )
    return float(low), float(high)
