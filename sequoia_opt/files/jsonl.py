"""A file of JSON lines that only grows, for what must survive a process that is killed.

Knows lines and how they get to the disk; nothing of what they say.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.files.documents import plain
from sequoia_opt.files.locks import lock
from sequoia_opt.processes import is_first_process

PIECE = 2**16


class Lines:
    """An open file; a last line that was not written to its end gives way to the next.

    It is held against other runs until it is closed. Of several processes of one run all read,
    and the first alone writes.
    """

    def __init__(self, path: Path, begins: str, patient: bool = False) -> None:
        """Open the file, or begin one.

        Args:
            begins: what each line begins with; a file of anything else is left alone.
            patient: wait while another run holds it.

        Raises:
            SequoiaError: it is of something else, is being written by another run, or cannot be
                written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _held(path, patient) if is_first_process() else FileIO(os.devnull, "ab+")
            self._size = self._file.seek(0, os.SEEK_END)
            self._whole = self._end_of_last_line(self._size)
            for place in (0, self._whole):  # the first line, and one that was cut off
                self._file.seek(place)
                found, wanted = self._file.read(len(begins.encode())), begins.encode()
                if found != wanted[: len(found)]:
                    self._file.close()
                    raise SequoiaError(
                        f"{path}: has lines that do not begin with {begins}; name another file"
                    )
            self._file.seek(self._whole)
            # One that lacks nothing but its end is a line.
            self._unended = is_json(self._file.read(self._size - self._whole))
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in the file."""
        return os.fstat(self._file.fileno()).st_size == 0

    def _end_of_last_line(self, end: int) -> int:
        """Where the last line that is whole ends."""
        while end > 0:
            start = max(0, end - PIECE)
            self._file.seek(start)
            place = self._file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
        return 0

    def read(self) -> list[Any]:
        """What the lines say.

        Raises:
            SequoiaError: a line is no JSON.
        """
        return read_lines(self.path) if os.path.exists(self.path) else []

    def add(self, document: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            SequoiaError: it cannot be written; the lines before it are there.
        """
        if not is_first_process():
            return
        kept = plain(document, spell_out=False)
        text = json.dumps(kept, ensure_ascii=False) + "\n"
        if not _is_unicode(text):  # half of a character is read again as it was
            text = json.dumps(kept) + "\n"
        line = memoryview(("\n" * self._unended + text).encode())
        try:
            if self._whole < self._size and not self._unended:
                self._file.truncate(self._whole)
            self._size, self._unended = self._whole, False
            while line:
                line = line[self._file.write(line) or 0 :]
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def clear(self) -> None:
        """Drop all lines.

        Raises:
            SequoiaError: they cannot be.
        """
        try:
            if is_first_process():
                self._file.truncate(0)
        except OSError as error:
            raise self._failed(error) from None
        self._size, self._whole, self._unended = 0, 0, False

    def remove(self) -> None:
        """Drop the file; nothing more is added.

        Raises:
            SequoiaError: it cannot be removed.
        """
        try:
            if is_first_process():
                self.path.unlink(missing_ok=True)  # while it is held: nobody has begun it anew
        except OSError as error:
            raise SequoiaError(f"{self.path}: cannot be removed ({reason_of(error)})") from None
        finally:
            self.close()

    def _failed(self, error: OSError | ValueError) -> SequoiaError:
        return SequoiaError(f"{self.path}: cannot be written ({reason_of(error)})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()


def _held(path: Path, patient: bool) -> FileIO:
    """An open file that no other run writes to.

    Raises:
        SequoiaError: one does.
    """
    while True:
        file = FileIO(path, "ab+")
        if not lock(file.fileno(), patient):
            file.close()
            raise SequoiaError(
                f"{path}: another run is writing to it; wait for that one, or name another file"
            )
        # Who held it may have removed it before letting go.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


def check_free(path: Path) -> None:
    """Refuse a file that another run is writing to: before the models are loaded.

    Raises:
        SequoiaError: one is.
    """
    if is_first_process() and os.path.isfile(path) and os.access(path, os.W_OK):
        _held(path, patient=False).close()


def read_lines(path: Path) -> list[Any]:
    """What a file's lines say, but for a last one that was not written to its end.

    Raises:
        SequoiaError: it cannot be read, or a line is no JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be read ({reason_of(error)})") from None
    found = []
    whole = content.rfind(b"\n") + 1
    lines = content if is_json(content[whole:]) else content[:whole]
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            raise SequoiaError(f"{path}: line {number}: not valid JSON") from None
    return found


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json(content: bytes) -> bool:
    """Whether it is a whole document."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
