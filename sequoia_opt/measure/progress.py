"""How long work reports on itself: progress for a bar, and notes for the user.

Knows the two kinds of callbacks. Knows nothing of what is measured or of how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is to do in total, in the same unit."""

Note = Callable[[str], None]
"""Called with one line for the user."""


def no_progress(done: int, total: int) -> None:
    """Report no progress."""


def no_note(message: str) -> None:
    """Drop the note."""
