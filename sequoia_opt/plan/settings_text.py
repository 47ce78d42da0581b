"""The settings in a text: flags, keyword arguments, JSON and YAML, as users paste them.

Knows how such a text is written and what belongs to a name. Knows nothing of what a setting does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sequoia_opt.files.documents import yaml_value

Value = int | float | bool | str | list[Any] | dict[str, Any] | None

_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#[^\n]*")
_NAME = re.compile(r"(?<![\w.-])(?:--?[A-Za-z][\w.-]*|[A-Za-z_][\w.-]*)")
_ASSIGNED = re.compile(
    r"\\?[\"']?[ \t]*(?::(?!//)(?:[ \t]*[A-Za-z][\w.]*\[[\w\[\], .|]*\][ \t]*=)?|=(?!=))[ \t]*"
)
# A flag's value is the next word of a shell line, the next string of a list of arguments, or the
# next entry of a YAML list.
_BEHIND = re.compile(r"\\?[\"']?(?:[ \t]*,\s*|[ \t]*\\?\n[ \t]*-[ \t]+|[ \t]*\\\n[ \t]*|[ \t]+)")
_NOT_A_FLAG = re.compile(r"\\?[\"']?(?!-{1,2}[A-Za-z])(?=[^\s,;)}\]])")
_OPENING = re.compile(r"\s*(?:str\()?(?:\\?[\"'])?(?:str\()?(?=[\[({])")
_LISTED = re.compile(r"[\[(][\d\s,\[\]()\\-]*")
_QUOTED = re.compile(r"\\?(?P<mark>[\"'])(?P<text>[^\"'{\[\n\\]*)\\?(?P=mark)")
_WORD = re.compile(r"\\?[\"']?(?P<text>[^\s,;)}\]\"'\\{(\[]+)\\?[\"']?")
_ENTRIES = re.compile(r"[ \t]*\n((?:[ \t]*-[ \t\d,\[\]-]*(?:\n|\Z))+)(?![ \t]*-[ \t])")
_NUMBERED_TYPE = re.compile(r"(?P<text>[\w-]+):(?=\w+=)")  # ik_llama.cpp's mtp:n_max=4
_CONSTANTS = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}


@dataclass(frozen=True)
class Setting:
    """A name and what is set behind it.

    Attributes:
        written: the name as it is written.
        name: in lower case with underscores, without dashes before it or what it is a part of.
        value: None for null; {} for a mapping or an object, whose own settings follow.
        is_flag: it begins with a dash.
    """

    written: str
    name: str
    value: Value
    is_flag: bool = False


def settings(text: str) -> list[Setting]:
    """All settings of a text, in its order; comments are left out."""
    return list(_settings(_COMMENT.sub("", text)))


def plain_name(written: str) -> str:
    """A setting's name as all engines would write it.

    >>> plain_name("--speculative-config.num_speculative_tokens")
    'num_speculative_tokens'
    """
    name = written.strip("-").lower().replace("-", "_").removeprefix("llama_arg_")
    return name.rsplit(".", 1)[-1]


def _settings(text: str) -> Iterator[Setting]:
    place = 0
    while met := _NAME.search(text, place):
        written, place = met.group(), met.end()
        is_flag = written.startswith("-")
        name = plain_name(written)
        if not is_flag and text.startswith("(", place) and name.endswith("decodingconfig"):
            # TensorRT-LLM's classes say in their name what its YAML calls decoding_type.
            yield Setting(written, "decoding_type", name.removesuffix("decodingconfig"))
            continue
        separator = _ASSIGNED.match(text, place)
        if separator is None and is_flag:
            separator = _BEHIND.match(text, place)
            if separator is None or not _NOT_A_FLAG.match(text, separator.end()):
                yield Setting(written, name, True, is_flag)
                continue
        if separator is None:
            continue
        value, place = _value(text, separator.end(), name)
        yield Setting(written, name, value, is_flag)


def _value(text: str, place: int, name: str) -> tuple[Value, int]:
    """The value that begins at a place, and where to read on."""
    if entries := _ENTRIES.match(text, place):
        if (listed := _entries(entries[1])) is not None:
            return listed, entries.end()
        return {}, place
    if opening := _OPENING.match(text, place):
        start = opening.end()
        if text[start] != "{" and (numbers := _listed(text, start)) is not None:
            return numbers
        return {}, start + 1
    if name == "spec_type" and (numbered := _NUMBERED_TYPE.match(text, place)):
        return numbered["text"], numbered.end()
    for form in (_QUOTED, _WORD):
        if found := form.match(text, place):
            is_call = text.startswith("(", found.end())
            return _constant(found["text"]), place if is_call else found.end()
    return {}, place


def _constant(text: str) -> Value:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _listed(text: str, start: int) -> tuple[list[Any], int] | None:
    """The list or tuple of numbers that begins at a place, and where it ends."""
    written = _LISTED.match(text, start)
    depth = 0
    for place in range(start, written.end() if written else start):
        depth += (text[place] in "[(") - (text[place] in "])")
        if depth == 0:
            try:
                found = ast.literal_eval(text[start : place + 1].replace("\\", " "))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                return None
            return (list(found), place + 1) if isinstance(found, (list, tuple)) else None
    return None


def _entries(text: str) -> list[Any] | None:
    """A YAML list of lists of numbers, in either of its styles, of its lines."""
    try:
        found = yaml_value(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None
