from __future__ import annotations

import pytest
from test_latency import curve, make_profile

from sequoia_opt.errors import SequoiaError


def test_interpolates_between_points_and_contexts() -> None:
    profile = make_profile()
    assert profile.target.at([1, 3, 64], 128).tolist() == [10.5, 11.5, 42]
    assert profile.target.at([1], 576).tolist() == [15.5]
    assert profile.target.at([8], 1024).tolist() == [24]
    assert profile.target.at([8], 128, of="high_ms").tolist() == pytest.approx([15.4])


@pytest.mark.parametrize(
    ("tokens", "context", "batch", "complaint"),
    [
        ([65], 128, 1, "1 to 64 tokens per forward pass, not for 65"),
        ([0.5], 128, 1, "not for 0.5"),
        ([1], 127, 1, "contexts of 128 to 1024 tokens, not for 127"),
        ([1], 1025, 1, "not for 1025"),
        ([1], 128, 4, r"measured for batches \[1\], not for 4"),
    ],
)
def test_never_goes_past_what_was_measured(
    tokens: list[int], context: float, batch: int, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        make_profile().target.at(tokens, context, batch)


def test_a_wide_interval_makes_a_time_unsure() -> None:
    measured = curve(128, [1, 2, 4], [10, 10, 10])
    measured.high_ms[1] += 5
    assert measured.unsure() == [2]
