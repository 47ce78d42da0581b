"""Policies of adaptive plans for the tests."""

from __future__ import annotations

import numpy as np

from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.policy import Pause, Policy


def random_policy(shape: tuple[int, int, int], seed: int, pause: Pause | None = None) -> Policy:
    """Thresholds and a calibration of no meaning, by which trees differ as much as they can.

    Args:
        shape: the most levels, ranks, and nodes of a level.
    """
    random = np.random.default_rng(seed)
    depth, ranks, width = shape
    rates = np.sort(random.uniform(size=(depth, ranks, 4)), axis=2)
    rates = np.minimum.accumulate(rates, axis=1)
    most = ranks + (depth - 1) * width * ranks + 1
    sizes = {1, most, *random.integers(1, most + 1, size=2).tolist()}
    return Policy(
        confidence=Confidence(
            tuple(np.sort(random.uniform(0.1, 0.9, size=3)).tolist()),
            tuple(tuple(tuple(row) for row in table) for table in rates.tolist()),
        ),
        depth=depth,
        ranks=ranks,
        expand=tuple((w, float(random.uniform(0, 0.5) * w)) for w in range(1, width + 1)),
        first=0.5,
        offer=float(random.uniform(0, 0.4)),
        sizes=tuple(sorted(sizes)[: random.integers(2, 5)]),
        pause=pause,
    )
