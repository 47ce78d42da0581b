"""What every command prints with: progress and notes in a pipe."""

from __future__ import annotations

import threading
import time

import pytest

from sequoia_opt.cli import output


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is said to be."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_is_told_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """After ten seconds, then twice as many, then every minute; a part begins anew."""
    advance = output._occasional_notes("profiling")
    for second in range(301):
        clock[0] = float(second)
        advance(second, 400)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "profiling: 10 of 400, about 6 min left"
    assert [line.split()[1] for line in told] == ["10", "30", "70", "130", "190", "250"]
    for second in range(301, 431):
        clock[0] = float(second)
        advance(second - 301, 130)  # another part, of as many seconds
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "profiling: 9 of 130, about 2 min left",
        "profiling: 69 of 130, about 1 min left",
        "profiling: 129 of 130, about 1 s left",
    ]


def test_a_pipe_is_told_of_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, and not of what does not."""
    with output.waiting("loading"):
        pass
    assert capsys.readouterr().err == ""
    said = threading.Event()
    monkeypatch.setattr(output, "FIRST_NOTE", 0.0)
    monkeypatch.setattr(output, "note", lambda message: (said.set(), print(message)))
    for context in (output.waiting("loading"), output.progress("loading")):
        said.clear()
        with context:
            assert said.wait(60)
        assert capsys.readouterr().out == "loading …\n"
