from __future__ import annotations

from sequoia_opt.errors import one_line, reason_of


def test_a_message_is_folded_into_one_line() -> None:
    assert one_line(ValueError("a\n  b\n")) == "a b"
    assert one_line(ValueError()) == "ValueError"


def test_an_operating_systems_error_gives_its_own_reason() -> None:
    assert reason_of(FileNotFoundError(2, "No such file or directory", "x")) == (
        "No such file or directory"
    )
    assert reason_of(OSError("odd")) == "odd"
    assert reason_of(ValueError("a\nb")) == "a b"
