"""The one exception a user is meant to read."""

from __future__ import annotations


class SequoiaError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do."""
