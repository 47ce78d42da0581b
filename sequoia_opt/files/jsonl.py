"""A JSON Lines file that is appended to, for results that must survive a killed process.

Knows lines and how they reach the disk. Knows nothing of what they say.
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

CHUNK = 2**16  # bytes per read, from the end of the file backwards


class Lines:
    """An open JSON Lines file; a last line that was cut off is overwritten by the next.

    The file is locked against other runs until it is closed. When a run has several processes,
    all of them read and only the first one writes.
    """

    def __init__(self, path: Path, begins: str, patient: bool = False) -> None:
        """Open the file, or create it.

        Args:
            begins: what each line begins with; a file with other lines is left alone.
            patient: wait while another run has the file locked.

        Raises:
            SequoiaError: the file has other lines, is locked by another run, or cannot be
                written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_first_process():
                self._file = _open_locked(path, patient)
            else:
                self._file = FileIO(os.devnull, "ab+")
            self._size = self._file.seek(0, os.SEEK_END)
            self._whole_size = self._end_of_last_whole_line()
            self._check_beginnings(begins.encode())
            self._file.seek(self._whole_size)
            # A last line that lacks only its line end is whole.
            self._lacks_line_end = is_json(self._file.read(self._size - self._whole_size))
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    @property
    def is_empty(self) -> bool:
        """Whether the file has no content."""
        return os.fstat(self._file.fileno()).st_size == 0

    def _end_of_last_whole_line(self) -> int:
        end = self._size
        while end > 0:
            start = max(0, end - CHUNK)
            self._file.seek(start)
            line_end = self._file.read(end - start).rfind(b"\n")
            if line_end >= 0:
                return start + line_end + 1
            end = start
        return 0

    def _check_beginnings(self, beginning: bytes) -> None:
        """Refuse a file whose first line, or last line that was cut off, begins otherwise."""
        for start in (0, self._whole_size):
            self._file.seek(start)
            content = self._file.read(len(beginning))
            if not beginning.startswith(content):
                self._file.close()
                raise SequoiaError(
                    f"{self.path}: has lines that do not begin with {beginning.decode()}; name "
                    "another file"
                )

    def read(self) -> list[Any]:
        """The lines' values.

        Raises:
            SequoiaError: a line is not JSON.
        """
        return read_lines(self.path) if os.path.exists(self.path) else []

    def add(self, document: Mapping[str, Any]) -> None:
        """Append a line; it is on the disk when this returns.

        Raises:
            SequoiaError: it cannot be written; the lines before it are intact.
        """
        if not is_first_process():
            return
        value = plain(document, spell_out=False)
        text = json.dumps(value, ensure_ascii=False) + "\n"
        if not _is_unicode(text):  # a lone surrogate; its JSON escape reads back as it was
            text = json.dumps(value) + "\n"
        if self._lacks_line_end:
            text = "\n" + text
        unwritten = memoryview(text.encode())
        try:
            if self._whole_size < self._size and not self._lacks_line_end:
                self._file.truncate(self._whole_size)
            self._size, self._lacks_line_end = self._whole_size, False
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) or 0 :]
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def clear(self) -> None:
        """Remove all lines.

        Raises:
            SequoiaError: the file cannot be truncated.
        """
        try:
            if is_first_process():
                self._file.truncate(0)
        except OSError as error:
            raise self._failed(error) from None
        self._size, self._whole_size, self._lacks_line_end = 0, 0, False

    def remove(self) -> None:
        """Remove the file and close it.

        Raises:
            SequoiaError: the file cannot be removed.
        """
        try:
            if is_first_process():
                self.path.unlink(missing_ok=True)  # while locked: no other run has created its own
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
        """Close the file and release its lock."""
        self._file.close()


def _open_locked(path: Path, patient: bool) -> FileIO:
    """A file opened for appending and locked.

    Raises:
        SequoiaError: another run has it locked.
    """
    while True:
        file = FileIO(path, "ab+")
        if not lock(file.fileno(), patient):
            file.close()
            raise SequoiaError(
                f"{path}: another run is writing to it; wait for that one, or name another file"
            )
        # The other run may have removed the file before it released the lock.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        file.close()


def check_free(path: Path) -> None:
    """Refuse a file that another run is writing to, before the models are loaded.

    Raises:
        SequoiaError: another run has it locked.
    """
    if is_first_process() and os.path.isfile(path) and os.access(path, os.W_OK):
        _open_locked(path, patient=False).close()


def read_lines(path: Path) -> list[Any]:
    """The values of a file's lines, without a last line that was cut off.

    Raises:
        SequoiaError: the file cannot be read, or a line is not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be read ({reason_of(error)})") from None
    whole_size = content.rfind(b"\n") + 1
    lines = content if is_json(content[whole_size:]) else content[:whole_size]
    values = []
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            raise SequoiaError(f"{path}: line {number}: not valid JSON") from None
    return values


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json(content: bytes) -> bool:
    """Whether the content is one complete JSON value."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
