"""A file of JSON lines that only grows, for what must survive a process that is killed.

Knows lines and how they get to the disk; nothing of what they say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import is_first_process, plain

PIECE = 2**16


class Lines:
    """An open file; a last line that was not written to its end gives way to the next.

    Of several processes all read, and the first alone writes.
    """

    def __init__(self, path: Path, begins: str) -> None:
        """Open the file, or begin one.

        Args:
            begins: what each line begins with; a file of anything else is left alone.

        Raises:
            SequoiaError: it is of something else, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path if is_first_process() else os.devnull, "ab+")
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
        except OSError as error:
            raise self._failed(error) from None

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
        return read_lines(self.path) if self.path.exists() else []

    def add(self, document: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            SequoiaError: it cannot be written; the lines before it are there.
        """
        if not is_first_process():
            return
        text = json.dumps(plain(document), ensure_ascii=False) + "\n"
        if not _is_unicode(text):  # half of a character is read again as it was
            text = json.dumps(plain(document)) + "\n"
        line = memoryview(("\n" * self._unended + text).encode())
        try:
            if self._whole < self._size and not self._unended:
                self._file.truncate(self._whole)
            self._size, self._unended = self._whole, False
            while line:
                line = line[self._file.write(line) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> SequoiaError:
        return SequoiaError(f"{self.path}: cannot be written ({error.strerror or error})")

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


def read_lines(path: Path) -> list[Any]:
    """What a file's lines say, but for a last one that was not written to its end.

    Raises:
        SequoiaError: it cannot be read, or a line is no JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be read ({error.strerror or error})") from None
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
