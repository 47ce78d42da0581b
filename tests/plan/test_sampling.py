from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temperature": -0.1}, "temperature: found -0.1, expected at least 0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"top_p": 0.0}, "top-p: found 0, expected above 0 and at most 1"),
        ({"top_p": 1.1}, "top-p: found 1.1"),
        ({"top_k": -1}, "top-k: found -1, expected at least 1, or 0 for all tokens"),
        ({"min_p": -0.1}, "min-p: found -0.1, expected 0 to 1"),
        ({"min_p": 1.5}, "min-p: found 1.5"),
    ],
)
def test_refuses_numbers_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        Sampling(**settings)


def test_cuts_in_words() -> None:
    assert Sampling(0.6, 0.9).cuts == ""
    assert Sampling(0.6, top_k=20, min_p=0.05).cuts == ", top-k 20, min-p 0.05"


def test_any_cut_truncates_the_distribution() -> None:
    assert not Sampling(0.6).is_truncated
    for cut in (Sampling(top_p=0.9), Sampling(top_k=1), Sampling(min_p=0.1)):
        assert cut.is_truncated
