"""The settings in a text: flags, keyword arguments, JSON and YAML, as users paste them.

Knows how such a text is written and which value belongs to a name. Knows nothing of what a
setting does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sequoia_opt.files.yaml_text import yaml_value

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
    """A name and the value that follows it.

    Attributes:
        written: the name as the text has it.
        name: in lower case with underscores, without leading dashes or the names of the objects
            that it belongs to.
        value: None for null; {} for a mapping or an object, whose own settings follow.
        is_flag: whether it begins with a dash.
    """

    written: str
    name: str
    value: Value
    is_flag: bool = False


def settings(text: str) -> list[Setting]:
    """All settings of a text, in its order; comments are ignored."""
    return list(_settings(_COMMENT.sub("", text)))


def plain_name(written: str) -> str:
    """A setting's name as all engines would write it.

    >>> plain_name("--speculative-config.num_speculative_tokens")
    'num_speculative_tokens'
    """
    name = written.strip("-").lower().replace("-", "_").removeprefix("llama_arg_")
    return name.rsplit(".", 1)[-1]


def _settings(text: str) -> Iterator[Setting]:
    position = 0
    while match := _NAME.search(text, position):
        written, position = match.group(), match.end()
        is_flag = written.startswith("-")
        name = plain_name(written)
        if not is_flag and text.startswith("(", position) and name.endswith("decodingconfig"):
            # TensorRT-LLM's classes have in their name what its YAML calls decoding_type.
            yield Setting(written, "decoding_type", name.removesuffix("decodingconfig"))
            continue
        separator = _ASSIGNED.match(text, position)
        if separator is None and is_flag:
            separator = _BEHIND.match(text, position)
            if separator is None or not _NOT_A_FLAG.match(text, separator.end()):
                yield Setting(written, name, True, is_flag)
                continue
        if separator is None:
            continue
        value, position = _value(text, separator.end(), name)
        yield Setting(written, name, value, is_flag)


def _value(text: str, start: int, name: str) -> tuple[Value, int]:
    """The value that begins at `start`, and the position at which to read on."""
    if entries := _ENTRIES.match(text, start):
        if (listed := _entries(entries[1])) is not None:
            return listed, entries.end()
        return {}, start
    if opening := _OPENING.match(text, start):
        bracket = opening.end()
        if text[bracket] != "{" and (numbers := _listed(text, bracket)) is not None:
            return numbers
        return {}, bracket + 1
    if name == "spec_type" and (numbered := _NUMBERED_TYPE.match(text, start)):
        return numbered["text"], numbered.end()
    for pattern in (_QUOTED, _WORD):
        if match := pattern.match(text, start):
            is_call = text.startswith("(", match.end())
            return _constant(match["text"]), start if is_call else match.end()
    return {}, start


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
    """The list or tuple of numbers that begins at `start`, and the position after it."""
    match = _LISTED.match(text, start)
    depth = 0
    for position in range(start, match.end() if match else start):
        if text[position] in "[(":
            depth += 1
        elif text[position] in "])":
            depth -= 1
        if depth == 0:
            try:
                value = ast.literal_eval(text[start : position + 1].replace("\\", " "))
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                return None
            return (list(value), position + 1) if isinstance(value, (list, tuple)) else None
    return None


def _entries(text: str) -> list[Any] | None:
    """The lists of numbers in the lines of a YAML list, in either of its styles."""
    try:
        value = yaml_value(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None
