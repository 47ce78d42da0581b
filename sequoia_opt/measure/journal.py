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
from sequoia_opt.plan.files import is_first_process, plain, same_fingerprint
from sequoia_opt.plan.lines import Lines

BEGINS = '{"journal": '
HEAD = "about"


class Journal:
    """The parts of one measurement by their names. Without a file nothing is kept.

    Attributes:
        recalled: how many parts there were when it was opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        max_seconds: float | None = None,
    ) -> None:
        """Open it.

        Args:
            path: file to keep the parts in.
            about: what the measurement is; parts of another are not taken up.
            resume: take up what is there; else it is begun anew.
            max_seconds: after which no new part should begin.

        Raises:
            SequoiaError: the file is of another measurement.
        """
        self._ends = None if max_seconds is None else time.monotonic() + max_seconds
        self._parts: dict[str, Any] = {}
        self._path, self._about = path, dict(plain(about or {}))
        self._lines: Lines | None = None
        self._cut_short = False
        if path is not None and resume and path.exists():
            self._take_up(path)
        self.recalled = len(self._parts)

    def _take_up(self, path: Path) -> None:
        lines = Lines(path, BEGINS)
        found = lines.read()
        if not found:
            lines.close()
            return
        head, *parts = found
        if not same_fingerprint(head.get("value"), self._about):
            given = head["value"] if isinstance(head.get("value"), dict) else {}
            pairs = ((key, given.get(key), value) for key, value in self._about.items())
            other = next((k for k, a, b in pairs if not same_fingerprint(a, b)), "program")
            raise SequoiaError(
                f"{path}: was begun with another {other}; leave out --resume to begin anew"
            )
        try:
            self._parts = {str(part["journal"]): part["value"] for part in parts}
        except (KeyError, TypeError):
            raise SequoiaError(f"{path}: is damaged; leave out --resume to begin anew") from None
        self._lines = lines

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
                f"{self._path}: {name}: is damaged; leave out --resume to begin anew"
            ) from None

    def keep(self, name: str, value: Any) -> None:
        """Have a part's findings on the disk.

        Raises:
            SequoiaError: they cannot be written.
        """
        if self._path is None:
            return
        if self._lines is None:  # not before there is something to keep
            if is_first_process():
                _remove(self._path)
            self._lines = Lines(self._path, BEGINS)
            self._lines.add({"journal": HEAD, "value": self._about})
        self._lines.add({"journal": name, "value": plain(value)})

    def is_over(self, world: World = ALONE) -> bool:
        """Whether the time is up, so that what is left is left out; all processes agree."""
        over = self._ends is not None and time.monotonic() >= self._ends
        self._cut_short = bool(world.agree_on(over))
        return self._cut_short

    def finish(self) -> None:
        """What was measured is written; unless it was cut short, nothing is left to take up."""
        if self._cut_short:
            return
        if self._lines is not None and self._path is not None and is_first_process():
            self._lines.close()
            _remove(self._path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be removed ({error.strerror or error})") from None
