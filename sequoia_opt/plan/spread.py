"""How sure a number is: between 95 % intervals, standard deviations and replicates."""

from __future__ import annotations

import numpy as np

from sequoia_opt.plan.files import FloatArray

REPLICATES = 200
TAIL = 0.025  # of a 95 % interval, on either side
_WIDTH = 3.92  # of a normal 95 % interval, in standard deviations


def deviation(low: FloatArray, high: FloatArray) -> FloatArray:
    """Standard deviation of a normal quantity with these 95 % intervals."""
    return np.asarray(np.maximum(high - low, 0.0) / _WIDTH)


def interval(replicates: FloatArray) -> tuple[float, float]:
    """95 % interval of a quantity from its replicates."""
    low, high = np.quantile(replicates, [TAIL, 1 - TAIL])
    return float(low), float(high)
