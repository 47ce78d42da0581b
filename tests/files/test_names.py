from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequoia_opt.files import names


@given(st.text())
def test_names_never_leave_their_folder(name: str) -> None:
    safe = names.safe_name(name)
    assert safe
    assert Path(safe).name == safe
    assert safe not in (".", "..")


def test_long_names_are_cut_and_stay_apart() -> None:
    assert names.safe_name("a" * 220) == "a" * 220
    first, second = names.safe_name("é" * 200 + "a"), names.safe_name("é" * 200 + "b")
    assert first != second
    assert len(first.encode()) <= 220
    assert names.short_name(os.fsdecode(b"\xff" * 300))


WEIGHTS = "0123456789abcdef-0011223344556677"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (WEIGHTS, WEIGHTS, True),
        (WEIGHTS, WEIGHTS[:16], True),  # an older file has the first part alone
        (WEIGHTS, WEIGHTS[:17] + "f" * 16, False),
        (WEIGHTS, "f" + WEIGHTS[1:], False),
        ({"target": WEIGHTS, "draft": 1}, {"target": WEIGHTS[:16], "draft": 1}, True),
        ({"target": WEIGHTS}, {"target": WEIGHTS, "draft": 1}, False),
        ("name", "name", True),
        ("name", "name-0", False),
        (None, WEIGHTS, False),
    ],
)
def test_fingerprints_are_compared_by_the_parts_that_both_have(
    first: object, second: object, same: bool
) -> None:
    assert names.same_fingerprint(first, second) is same
    assert names.same_fingerprint(second, first) is same
