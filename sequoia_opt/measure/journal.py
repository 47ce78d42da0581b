"""Records the finished parts of a long measurement, and says when its time is up.

Each part is on the disk before the next begins, so that a killed run can be resumed where it
stopped. Knows nothing of the measurements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import plain
from sequoia_opt.files.jsonl import Lines
from sequoia_opt.files.names import same_fingerprint

LINE_START = '{"journal": '
HEADER = "about"  # name of the first line, which describes the measurement
WRITTEN = "written"  # name of the line behind all parts that are in a written result
START_OVER = "omit --resume and add --force to start over"


class Journal:
    """The finished parts of one measurement, by name. Without a file nothing is recorded.

    The file is locked against other runs until the journal is closed.

    Attributes:
        resumed: number of parts that were already finished when the journal was opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        max_seconds: float | None = None,
        restart: bool = False,
    ) -> None:
        """Open the journal.

        Args:
            path: file to record the parts in.
            about: describes the measurement; parts of another one are not resumed.
            resume: take over the parts that the file has.
            max_seconds: seconds from now after which no new part should begin.
            restart: discard the parts that the file has, as soon as there is a new one to record.

        Raises:
            SequoiaError: the file belongs to another measurement, is in use by another run, or
                has parts that the command may neither resume nor discard.
        """
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._parts: dict[str, Any] = {}
        self._about = dict(plain(about or {}))
        self._lines: Lines | None = None
        self._has_header = False  # whether the file's header is this measurement's
        self._cut_short = False
        self.resumed = 0
        if path is None:
            return
        self._lines = Lines(path, LINE_START)
        try:
            self._open(self._lines, resume, restart)
        except SequoiaError:
            self.close()
            raise
        self.resumed = len(self._parts)

    def _open(self, lines: Lines, resume: bool, restart: bool) -> None:
        """Resume from the file, or check that its parts may be discarded."""
        documents = lines.read()
        if not documents:
            return
        if resume:
            self._resume(lines.path, documents)
            self._has_header = True
        elif not restart and (count := _unwritten_parts(documents)):
            raise SequoiaError(
                f"{lines.path}: has {count} finished part{'s' if count > 1 else ''} of an "
                "interrupted measurement; continue it with --resume, or discard it with --force"
            )

    def _resume(self, path: Path, documents: list[Any]) -> None:
        """Take over the parts of a file, if they are this measurement's."""
        header, *parts = documents
        if not same_fingerprint(header.get("value"), self._about):
            about = header["value"] if isinstance(header.get("value"), dict) else {}
            differing = (
                key
                for key, value in self._about.items()
                if not same_fingerprint(about.get(key), value)
            )
            raise SequoiaError(
                f"{path}: was started with another {next(differing, 'program')}; {START_OVER}"
            )
        try:
            self._parts = {
                str(part["journal"]): part["value"] for part in parts if part["journal"] != WRITTEN
            }
        except (KeyError, TypeError):
            raise SequoiaError(f"{path}: is damaged; {START_OVER}") from None

    def recall(self, name: str) -> Any:
        """The value recorded for a part; None if the part has not finished."""
        return self._parts.get(name)

    @contextmanager
    def resuming(self, name: str) -> Iterator[None]:
        """Guard the use of a part's recorded value.

        Raises:
            SequoiaError: the value is not one that this program recorded.
        """
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError):
            path = self._lines.path if self._lines else ""
            raise SequoiaError(f"{path}: {name}: is damaged; {START_OVER}") from None

    def record(self, name: str, value: Any) -> None:
        """Record a finished part; it is on the disk when this returns.

        Raises:
            SequoiaError: it cannot be written.
        """
        if self._lines is None:
            return
        if not self._has_header:  # not sooner: older parts stay until the first new one
            self._lines.clear()
            self._lines.add({"journal": HEADER, "value": self._about})
            self._has_header = True
        self._lines.add({"journal": name, "value": plain(value)})

    def time_is_up(self, world: World = ALONE) -> bool:
        """Whether to leave out the remaining parts; all processes get the same answer.

        If so, the measurement counts as cut short, see `finish`.
        """
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        self._cut_short = bool(world.agree_on(is_late))
        return self._cut_short

    def finish(self) -> None:
        """Close the journal of a measurement whose result is written.

        The file is removed, unless the measurement was cut short and can be resumed for more.
        """
        if self._lines is None:
            return
        if self._cut_short:
            if self._has_header:
                self._lines.add({"journal": WRITTEN, "value": True})
            self.close()
        else:
            lines, self._lines = self._lines, None
            lines.remove()

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        if self._lines is not None:
            lines, self._lines = self._lines, None
            if lines.is_empty:
                lines.remove()
            else:
                lines.close()


def _unwritten_parts(documents: list[Any]) -> int:
    """Number of parts that are in no written result: those behind the last WRITTEN line."""
    names = [line.get("journal") if isinstance(line, dict) else None for line in documents[1:]]
    return len(names) if WRITTEN not in names else names[::-1].index(WRITTEN)
