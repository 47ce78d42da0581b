"""What an interrupted command says of the parts that it keeps."""

from __future__ import annotations

import pytest

from sequoia_opt.cli.app import _kept


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["profile"], "continue with --resume"),
        (["bench", "--limit", "2"], ""),
        (["bench", "--output=r.json"], "continue with --resume"),
        (["bench-sizes", "-o", "r.json"], "continue with --resume"),
        (["calibrate", "-o", "r.json"], ""),
        (["complete", "p.jsonl", "t.json"], "the same command continues"),
        (["decode", "--prompt", "x"], ""),
        (["compare-drafts"], ""),
        ([], ""),
    ],
)
def test_what_an_interrupted_command_keeps(arguments: list[str], kept: str) -> None:
    said = _kept(arguments)
    assert kept in said
    assert bool(said) == bool(kept)
