"""What a long measurement has found so far, and whether its time is up.

Each part is on the disk before the next begins, so that a run that was killed is taken up where
it stopped. Knows nothing of what is measured.
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

BEGINS = '{"journal": '
HEAD = "about"
WRITTEN = "written"  # stands behind the parts that a result has been made of


class Journal:
    """The parts of one measurement by their names. Without a file nothing is kept.

    The file is held against other runs until the journal is closed.

    Attributes:
        recalled: how many parts there were when it was opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        max_seconds: float | None = None,
        restart: bool = False,
    ) -> None:
        """Open it.

        Args:
            path: file to keep the parts in.
            about: what the measurement is; parts of another are not taken up.
            resume: take up what is there.
            max_seconds: after which no new part should begin.
            restart: drop what is there, once there is something new to keep.

        Raises:
            SequoiaError: the file is of another measurement, is another run's, or keeps parts
                that the command neither resumes nor may drop.
        """
        self._ends = None if max_seconds is None else time.monotonic() + max_seconds
        self._parts: dict[str, Any] = {}
        self._about = dict(plain(about or {}))
        self._lines: Lines | None = None
        self._begun = False  # whether the file is of this measurement
        self._cut_short = False
        self.recalled = 0
        if path is None:
            return
        self._lines = Lines(path, BEGINS)
        try:
            self._open(self._lines, resume, restart)
        except SequoiaError:
            self.close()
            raise
        self.recalled = len(self._parts)

    def _open(self, lines: Lines, resume: bool, restart: bool) -> None:
        """Take up what the file has, or see to it that it may be dropped."""
        found = lines.read()
        if not found:
            return
        if resume:
            self._take_up(lines.path, found)
            self._begun = True
        elif not restart and (count := _unwritten(found)):
            raise SequoiaError(
                f"{lines.path}: keeps {count} finished part{'s' if count > 1 else ''} of a "
                "measurement that was cut off; continue it with --resume, or drop it with --force"
            )

    def _take_up(self, path: Path, found: list[Any]) -> None:
        head, *parts = found
        if not same_fingerprint(head.get("value"), self._about):
            given = head["value"] if isinstance(head.get("value"), dict) else {}
            pairs = ((key, given.get(key), value) for key, value in self._about.items())
            other = next((k for k, a, b in pairs if not same_fingerprint(a, b)), "program")
            raise SequoiaError(
                f"{path}: was begun with another {other}; leave out --resume and add --force to "
                "begin anew"
            )
        try:
            self._parts = {
                str(part["journal"]): part["value"] for part in parts if part["journal"] != WRITTEN
            }
        except (KeyError, TypeError):
            raise SequoiaError(
                f"{path}: is damaged; leave out --resume and add --force to begin anew"
            ) from None

    def recall(self, name: str) -> Any:
        """What a part found; None if it has not been run."""
        return self._parts.get(name)

    @contextmanager
    def taking_up(self, name: str) -> Iterator[None]:
        """While what a part found is made use of.

        Raises:
            SequoiaError: it is not what this program kept.
        """
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError):
            raise SequoiaError(
                f"{self._lines.path if self._lines else ''}: {name}: is damaged; leave out "
                "--resume and add --force to begin anew"
            ) from None

    def keep(self, name: str, value: Any) -> None:
        """Have a part's findings on the disk.

        Raises:
            SequoiaError: they cannot be written.
        """
        if self._lines is None:
            return
        if not self._begun:  # not before there is something to keep
            self._lines.clear()
            self._lines.add({"journal": HEAD, "value": self._about})
            self._begun = True
        self._lines.add({"journal": name, "value": plain(value)})

    def is_over(self, world: World = ALONE) -> bool:
        """Whether the time is up, so that what is left is left out; all processes agree."""
        over = self._ends is not None and time.monotonic() >= self._ends
        self._cut_short = bool(world.agree_on(over))
        return self._cut_short

    def finish(self) -> None:
        """What was measured is written; unless it was cut short, nothing is left to take up."""
        if self._lines is None:
            return
        if self._cut_short:
            if self._begun:
                self._lines.add({"journal": WRITTEN, "value": True})
            self.close()
        else:
            lines, self._lines = self._lines, None
            lines.remove()

    def close(self) -> None:
        """Let go of the file; of one that there is nothing in nothing stays."""
        if self._lines is not None:
            lines, self._lines = self._lines, None
            lines.remove() if lines.is_empty else lines.close()


def _unwritten(found: list[Any]) -> int:
    """How many parts are in no result: those after the last one was written."""
    names = [line.get("journal") if isinstance(line, dict) else None for line in found[1:]]
    return len(names) if WRITTEN not in names else names[::-1].index(WRITTEN)
