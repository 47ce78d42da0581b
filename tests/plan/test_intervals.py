from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.plan.intervals import TAIL, deviation, interval


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_an_interval_is_two_quantiles(values: list[float]) -> None:
    expected = np.quantile(values, [TAIL, 1 - TAIL])
    assert interval(np.array(values)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_deviation_gives_back_a_normal_interval() -> None:
    errors = np.random.default_rng(0).normal(3, 0.5, 20000)
    low, high = np.array(interval(errors))[:, None]
    assert deviation(low, high) == pytest.approx([0.5], rel=0.03)
