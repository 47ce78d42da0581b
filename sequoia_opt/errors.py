"""The one exception that users see, and one-line reasons for it."""

from __future__ import annotations


class SequoiaError(Exception):
    """An error that the user can fix: one line that says where, what was wrong and what to do."""


def reason_of(error: BaseException) -> str:
    """Why reading or writing failed, in a few words.

    For an error of the operating system only its own message, since the caller names the path.
    """
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    return one_line(error)


def one_line(error: BaseException) -> str:
    """An exception's message with its line breaks folded."""
    return " ".join(str(error).split()) or type(error).__name__
