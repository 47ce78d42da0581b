from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import locks
from sequoia_opt.files.jsonl import Lines, check_free

BEGINS = '{"a": '
HOLDER = """
import sys, time
from pathlib import Path
from sequoia_opt.files.jsonl import Lines
lines = Lines(Path(sys.argv[1]), '{"a": ')
lines.add({"a": 1})
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines.jsonl"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes to the file."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_writes_at_a_time_until_it_is_killed(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    content = path.read_bytes()
    for attempt in (lambda: Lines(path, BEGINS), lambda: check_free(path)):
        with pytest.raises(SequoiaError, match="another run is writing to it"):
            attempt()
    assert path.read_bytes() == content
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    check_free(path)
    with Lines(path, BEGINS) as lines:
        assert lines.read() == [{"a": 1}]
        lines.add({"a": 2})


def test_a_patient_run_waits(path: Path, holder: subprocess.Popen[str]) -> None:
    done: list[object] = []

    def add() -> None:
        with Lines(path, BEGINS, patient=True) as lines:
            lines.add({"a": 2})
            done.extend(lines.read())

    waiting = threading.Thread(target=add)
    waiting.start()
    waiting.join(0.2)
    assert not done
    holder.kill()
    waiting.join()
    assert done == [{"a": 1}, {"a": 2}]


def test_a_file_that_was_removed_while_locked_is_not_written_to(path: Path) -> None:
    """The run that waited for it creates a new one."""
    first = Lines(path, BEGINS)
    done = threading.Event()

    def add() -> None:
        with Lines(path, BEGINS, patient=True) as lines:
            lines.add({"a": 2})
        done.set()

    waiting = threading.Thread(target=add)
    waiting.start()
    assert not done.wait(0.2)
    first.remove()
    waiting.join()
    assert path.read_text() == '{"a": 2}\n'


def test_without_locks_every_run_may_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with Lines(path, BEGINS) as first, Lines(path, BEGINS) as second:
        first.add({"a": 1})
        second.add({"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("reason", ["ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_may_be_written_to(
    path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(getattr(errno, reason), os.strerror(getattr(errno, reason)))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lines(path, BEGINS) as lines:
        lines.add({"a": 1})


def test_devices_are_not_locked() -> None:
    with Lines(Path(os.devnull), BEGINS), Lines(Path(os.devnull), BEGINS) as second:
        second.add({"a": 1})
