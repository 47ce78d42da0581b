"""Plain data: the values that JSON can hold, checked after parsing and made before writing.

Knows dictionaries, lists, texts and numbers. Knows nothing of files.
"""

from __future__ import annotations

import math
from typing import Any

from sequoia_opt.files.fields import shown

MOST_ALIASED = 10**6  # values that a document's aliases may expand to
DEEPEST = 100  # nested lists and mappings
TOO_DEEP = f"found more than {DEEPEST} nested lists and mappings, expected fewer"


def check_depth(document: Any) -> None:
    """Refuse a document whose nesting could exhaust Python's recursion limit.

    Raises:
        ValueError: it is deeper than `DEEPEST`.
    """
    level, depth = [document], 0
    while level:
        if depth >= DEEPEST:
            raise ValueError(TOO_DEEP)
        containers = {
            id(value): value
            for parent in level
            for value in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(value, dict | list)
        }
        level, depth = list(containers.values()), depth + 1


def check_plain(document: Any) -> Any:
    """Refuse a document that could not be written as JSON, or whose aliases explode.

    Returns:
        The document; if parts of it are shared, because YAML has an alias there, with a separate
        copy at each alias.

    Raises:
        ValueError: aliases expand to millions of values or to a part that contains them, a number
            is not finite, a text is not Unicode, or a value is of another type.
    """
    waiting, met, has_shared_parts = [document], set(), False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            if id(value) in met:
                has_shared_parts = True
                continue
            met.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"found the number {value}, expected a finite one")
        elif isinstance(value, str):
            if not value.isascii():
                value.encode()  # raises for half of a surrogate pair
        elif value is not None and not isinstance(value, int):
            raise ValueError(f"found {shown(value)}, expected text, a number, a list or a mapping")
    return _without_sharing(document) if has_shared_parts else document


def _without_sharing(document: Any) -> Any:
    """A copy of a document in which no two places share a list or mapping.

    Raises:
        ValueError: the copy would have too many values, or no end.
    """
    counts: dict[int, int] = {}  # values in a part, by the part's identity
    written = 0  # values that the document itself spells out

    def count_values(part: Any) -> int:
        nonlocal written
        if not isinstance(part, dict | list):
            return 1
        if id(part) not in counts:
            counts[id(part)] = 0  # unknown until its values are counted
            values = list(part.values()) if isinstance(part, dict) else part
            written += 1 + sum(not isinstance(value, dict | list) for value in values)
            counts[id(part)] = 1 + sum(map(count_values, values))
        elif not counts[id(part)]:
            raise ValueError("found an alias of a part inside this part itself")
        return counts[id(part)]

    def copy(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: copy(value) for key, value in part.items()}
        return [copy(value) for value in part] if isinstance(part, list) else part

    if count_values(document) - written > MOST_ALIASED:
        raise ValueError(f"its aliases expand to more than {MOST_ALIASED} values")
    return copy(document)
