"""The uncertainty of a number: bootstrap resampling, 95% intervals and standard deviations.

Knows arrays of numbers. Knows nothing of what they measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.types import FloatArray

REPLICATES = 200
"""How many times `solve` resamples documents and timings."""

RESAMPLES = 1000
"""How many times `bootstrap` resamples documents."""

TAIL = 0.025  # the probability on either side of a 95% interval
_NORMAL_WIDTH = 3.92  # of a normal 95% interval, in standard deviations


def resampled_weights(
    generator: np.random.Generator, documents: int, resamples: int
) -> NDArray[np.int64]:
    """How often each document is drawn in each resample, [resamples, documents].

    Each resample draws `documents` of them, with replacement: Efron's bootstrap (1979), in which
    the weights of one resample are multinomial.
    """
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=resamples)


def document_weights(generator: np.random.Generator, documents: int, resamples: int) -> FloatArray:
    """The weight of each document in the estimate and in each resample, [documents, resamples + 1].

    The estimate counts each document once.
    """
    weights = np.ones((documents, resamples + 1))
    if documents:
        weights[:, 1:] = resampled_weights(generator, documents, resamples).T
    return weights


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], FloatArray],
    documents: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """95% interval of a statistic of whole documents.

    The same seed draws the same resamples, whatever the statistic.

    Args:
        statistic: maps the weights of the documents, [resamples, documents], to the statistic of
            each resample, [resamples, …].
        documents: their number, at least 1.

    Returns:
        low, high: […].
    """
    weights = resampled_weights(np.random.default_rng(seed), documents, resamples)
    low, high = np.quantile(statistic(weights), [TAIL, 1 - TAIL], axis=0)
    return np.asarray(low), np.asarray(high)


def ratio_interval(
    numerators: Sequence[FloatArray], denominators: Sequence[FloatArray], tail: float
) -> tuple[float, float]:
    """Interval of a quotient of sums over the same documents, by Student's t.

    The quotient is the product of the numerators' sums over that of the denominators'. Its
    logarithm is as uncertain as the sum of its linear terms (Cochran, Sampling Techniques, 1977,
    section 6.4). Unlike quantiles of a bootstrap, the interval holds for a few documents and for
    small tails too.

    Args:
        numerators, denominators: positive numbers of each document, all [documents], at least 2.
        tail: the probability on either side.
    """
    from scipy.special import stdtrit

    documents = len(numerators[0])
    above, below = (
        np.sum([values / values.mean() for values in side], axis=0)
        for side in (numerators, denominators)
    )
    terms = above - below
    error = np.sqrt(terms @ terms / (documents - 1) / documents)
    factor = float(np.exp(stdtrit(documents - 1, 1 - tail) * error))
    products = [np.prod([values.sum() for values in side]) for side in (numerators, denominators)]
    ratio = float(products[0] / products[1])
    return ratio / factor, ratio * factor


def interval(replicates: FloatArray) -> tuple[float, float]:
    """95% interval of a quantity from its replicates [count]: two of their quantiles.

    Interpolates linearly between order statistics, as `numpy.quantile` does. That function's
    first call loads masked arrays, which would take a tenth of the time of `solve`.
    """
    last = len(replicates) - 1
    low, high = np.interp(
        [TAIL * last, (1 - TAIL) * last], np.arange(last + 1), np.sort(replicates)
    )
    return float(low), float(high)


def deviation(low: FloatArray, high: FloatArray) -> FloatArray:
    """Standard deviations of normal quantities with these 95% intervals, in their shape."""
    return np.asarray(np.maximum(high - low, 0.0) / _NORMAL_WIDTH)
