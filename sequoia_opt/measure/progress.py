"""How long work reports on itself: progress for a bar, and notes for the user.

Knows the callbacks. Knows nothing of measurements or of terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], None]
"""Called with the amount of work done and the total, in the same unit."""

ProgressBar = Callable[[str], AbstractContextManager[Progress]]
"""Takes a label; gives a context manager that yields a `Progress`."""

Note = Callable[[str], None]
"""Called with one line for the user."""


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


@contextmanager
def no_progress_bar(label: str) -> Iterator[Progress]:
    """Show no progress."""
    yield no_progress


def no_note(message: str) -> None:
    """Drop the note."""
