from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.journal import Journal

ABOUT = {"prompts": 3, "models": {"target": "0"}}


def test_finished_parts_are_resumed(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    first = Journal(path, ABOUT)
    first.record("one", [1.5, 0.1 + 0.2])
    first.record("two", {"a": [1]})
    with path.open("ab") as stream:
        stream.write(b'{"journal": "three", "val')  # killed here
    first.close()
    resumed = Journal(path, ABOUT, resume=True)
    assert resumed.resumed == 2
    assert resumed.recall("one") == [1.5, 0.1 + 0.2]
    assert resumed.recall("two") == {"a": [1]}
    assert resumed.recall("three") is None
    resumed.record("three", 3)
    resumed.close()
    assert Journal(path, ABOUT, resume=True).recall("three") == 3
    Journal(path, ABOUT, resume=True).finish()
    assert not path.exists()


def test_an_interrupted_measurement_is_not_discarded_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).record("one", 1)
    content = path.read_bytes()
    for about in (ABOUT, {"prompts": 4}):
        with pytest.raises(SequoiaError, match=r"has 1 finished part .*--resume.*--force"):
            Journal(path, about)
    assert path.read_bytes() == content


def test_restarting_discards_the_parts_once_there_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).record("one", 1)
    other = Journal(path, {"prompts": 4}, restart=True)
    assert other.recall("one") is None
    other.close()
    assert Journal(path, ABOUT, resume=True).recall("one") == 1
    other = Journal(path, {"prompts": 4}, restart=True)
    other.record("two", 2)
    other.close()
    resumed = Journal(path, {"prompts": 4}, resume=True)
    assert (resumed.resumed, resumed.recall("two")) == (1, 2)


def test_resuming_without_a_file_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT, resume=True).record("one", 1)
    assert Journal(path, ABOUT, resume=True).recall("one") == 1


def test_another_measurement_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    Journal(path, ABOUT).record("one", 1)
    content = path.read_bytes()
    with pytest.raises(SequoiaError, match="was started with another prompts; omit --resume"):
        Journal(path, ABOUT | {"prompts": 4}, resume=True)
    with pytest.raises(SequoiaError, match="was started with another program; omit --resume"):
        Journal(path, {"prompts": 3}, resume=True)
    assert path.read_bytes() == content
    path.write_text(json.dumps({"something": "else"}) + "\n")
    with pytest.raises(SequoiaError, match="do not begin with"):
        Journal(path, ABOUT, resume=True)


def test_without_a_file_nothing_is_recorded() -> None:
    journal = Journal()
    journal.record("one", 1)
    assert journal.recall("one") is None
    assert not journal.time_is_up()
    journal.finish()


def test_the_time_is_up_after_max_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    journal = Journal(max_seconds=5)
    now = 104.9
    assert not journal.time_is_up()
    now = 105.0
    assert journal.time_is_up()


def test_a_measurement_that_was_cut_short_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    journal = Journal(path, ABOUT, max_seconds=0.0)
    journal.record("one", 1)
    assert journal.time_is_up()
    journal.finish()
    resumed = Journal(path, ABOUT, resume=True)
    assert (resumed.resumed, resumed.recall("one")) == (1, 1)
    resumed.close()
    with closing(Journal(path, ABOUT)) as journal:  # its part is in a result: nothing is lost
        assert journal.recall("one") is None
    resumed = Journal(path, ABOUT, resume=True)
    resumed.record("two", 2)
    resumed.close()
    with pytest.raises(SequoiaError, match="has 1 finished part "):
        Journal(path, ABOUT)


def test_a_journal_without_parts_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    with closing(Journal(path, ABOUT)):
        assert path.exists()
        with pytest.raises(SequoiaError, match="another run is writing to it"):
            Journal(path, ABOUT, resume=True)
    assert not path.exists()


def test_a_damaged_part_is_refused_in_one_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.partial", ABOUT)
    with (
        pytest.raises(SequoiaError, match=r"x\.partial: round 1: is damaged; omit --resume"),
        journal.resuming("round 1"),
    ):
        float("three")
