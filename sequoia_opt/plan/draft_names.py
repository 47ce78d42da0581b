"""The names of drafts, as command lines and files have them: a model, a lookup, or both.

Knows names only.
"""

from __future__ import annotations

LOOKUP = "lookup"
"""A draft without a model: what followed the text's end where that occurred before. A folder of
this name is ./lookup."""

LOOKUP_FIRST = "lookup+"
"""What comes before a draft model's name where a lookup drafts first, and else the model."""


def looks_up(draft: str) -> bool:
    """Whether a draft is a lookup, or has one before its model."""
    return draft == LOOKUP or draft.startswith(LOOKUP_FIRST)


def model_of(draft: str) -> str:
    """The model of a draft that has one, without the lookup before it; it may be empty."""
    return draft.removeprefix(LOOKUP_FIRST)
