from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.journal import Journal

ABOUT = {"prompts": 3, "models": {"target": "0"}}


def test_parts_are_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    first = Journal(path, ABOUT)
    first.keep("one", [1.5, 0.1 + 0.2])
    first.keep("two", {"a": [1]})
    with path.open("ab") as stream:
        stream.write(b'{"journal": "three", "val')  # killed here
    first.close()
    again = Journal(path, ABOUT, resume=True)
    assert again.recalled == 2
    assert again.recall("one") == [1.5, 0.1 + 0.2]
    assert again.recall("two") == {"a": [1]}
    assert again.recall("three") is None
    again.keep("three", 3)
    again.close()
    assert Journal(path, ABOUT, resume=True).recall("three") == 3
    Journal(path, ABOUT, resume=True).finish()
    assert not path.exists()


def test_what_was_cut_off_is_not_dropped_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).keep("one", 1)
    content = path.read_bytes()
    for about in (ABOUT, {"prompts": 4}):
        with pytest.raises(SequoiaError, match=r"keeps 1 finished part .*--resume.*--force"):
            Journal(path, about)
    assert path.read_bytes() == content


def test_restarted_it_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).keep("one", 1)
    other = Journal(path, {"prompts": 4}, restart=True)
    assert other.recall("one") is None
    other.close()
    assert Journal(path, ABOUT, resume=True).recall("one") == 1  # as long as nothing is measured
    other = Journal(path, {"prompts": 4}, restart=True)
    other.keep("two", 2)
    other.close()
    again = Journal(path, {"prompts": 4}, resume=True)
    assert (again.recalled, again.recall("two")) == (1, 2)


def test_resuming_what_was_never_begun_begins_it(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT, resume=True).keep("one", 1)
    assert Journal(path, ABOUT, resume=True).recall("one") == 1


def test_another_measurement_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).keep("one", 1)
    content = path.read_bytes()
    with pytest.raises(SequoiaError, match="was begun with another prompts"):
        Journal(path, ABOUT | {"prompts": 4}, resume=True)
    with pytest.raises(SequoiaError, match="was begun with another program"):
        Journal(path, {"prompts": 3}, resume=True)
    assert path.read_bytes() == content
    path.write_text(json.dumps({"something": "else"}) + "\n")
    with pytest.raises(SequoiaError, match="do not begin with"):
        Journal(path, ABOUT, resume=True)


def test_without_a_file_nothing_is_kept() -> None:
    journal = Journal()
    journal.keep("one", 1)
    assert journal.recall("one") is None
    assert not journal.is_over()
    journal.finish()


def test_the_time_is_up_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journal = Journal(max_seconds=5)
    now = 104.9
    assert not journal.is_over()
    now = 105.0
    assert journal.is_over()


def test_what_was_cut_short_can_be_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    journal = Journal(path, ABOUT, max_seconds=0.0)
    journal.keep("one", 1)
    assert journal.is_over()
    journal.finish()
    again = Journal(path, ABOUT, resume=True)
    assert (again.recalled, again.recall("one")) == (1, 1)
    again.close()
    with closing(Journal(path, ABOUT)) as journal:  # a result was made of it: nothing would be lost
        assert journal.recall("one") is None
    again = Journal(path, ABOUT, resume=True)
    again.keep("two", 2)
    again.close()
    with pytest.raises(SequoiaError, match="keeps 1 finished part "):
        Journal(path, ABOUT)


def test_a_journal_that_keeps_nothing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    with closing(Journal(path, ABOUT)):
        assert path.exists()
        with pytest.raises(SequoiaError, match="another run is writing to it"):
            Journal(path, ABOUT, resume=True)
    assert not path.exists()


def test_what_was_tampered_with_is_refused_in_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.partial", ABOUT)
    with (
        pytest.raises(SequoiaError, match=r"x\.partial: round 1: is damaged"),
        journal.taking_up("round 1"),
    ):
        float("three")
