from __future__ import annotations

import pytest

from sequoia_opt.plan.engine_settings import is_length, is_unknown, mode_name
from sequoia_opt.plan.settings_text import Setting, settings


def only_setting(text: str) -> Setting:
    [setting] = settings(text)
    return setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--num-speculative-tokens 5", True),
        ("--draft 16", True),
        ("draft: 16", False),  # without dashes the word means other things too
        ("--temperature 1", False),
    ],
)
def test_lengths_of_chains(text: str, expected: bool) -> None:
    assert is_length(only_setting(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--spec-branch-budget 8", True),
        ("--spec-branch-budget false", False),  # switched off
        ("draft: 16", True),  # a number could be a length
        ("draft: some/model", False),
        ("--draft-model some/model", False),
        ("--draft-p-min 0.5", False),
        ("--speculative-eagle-topk 1", False),
        ("--special-tokens 3", False),
        ("--port 80", False),
    ],
)
def test_settings_of_unknown_effect(text: str, expected: bool) -> None:
    assert is_unknown(only_setting(text)) == expected


def test_modes_are_compared_by_their_last_name() -> None:
    assert mode_name("SpeculativeDecodingMode.MEDUSA") == "medusa"
    assert mode_name("Draft-Target") == "draft_target"
