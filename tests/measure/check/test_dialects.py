"""What answers of several versions of a server say of its guesses."""

from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.measure.check.dialects import Guesses, SgLang


@pytest.mark.parametrize(
    ("counts", "guesses"),
    [
        ({}, Guesses(0, 0, 0)),
        (
            {"spec_verify_ct": 4, "spec_num_proposed_drafts": 12, "spec_num_correct_drafts": 5},
            Guesses(12, 5, 4),
        ),
        (
            {"spec_verify_ct": 4, "spec_draft_token_num": 12, "spec_accept_token_num": 5},
            Guesses(12, 5, 4),
        ),
        ({"spec_verify_ct": 4}, None),
    ],
)
def test_sglang_counts_by_two_names(counts: dict[str, Any], guesses: Guesses | None) -> None:
    """A version that speculates and counts nothing else is not one that makes no guesses."""
    answer = {"text": "ab", "output_ids": [1, 2], "meta_info": counts}
    assert SgLang().read(answer).guesses == guesses
