"""The one exception a user is meant to read."""

from __future__ import annotations

DEEPEST = 100  # lists and mappings in one another
TOO_DEEP = f"more than {DEEPEST} lists and mappings in one another"


class SequoiaError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do."""


def reason_of(error: BaseException) -> str:
    """Why reading or writing failed, in a few words: of an operating system's error its own, as
    the path is known."""
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    if isinstance(error, RecursionError):
        return TOO_DEEP
    return one_line(error)


def one_line(error: BaseException) -> str:
    """An exception's message with its line breaks folded."""
    return " ".join(str(error).split()) or type(error).__name__
