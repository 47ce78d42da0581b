"""Reading and writing the program's files: checked fields, atomic writes, safe YAML.

Knows the envelope that all files share (`format`, `version`) and how to complain about a
field. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from sequoia_opt.errors import DEEPEST, TOO_DEEP, SequoiaError, one_line, reason_of
from sequoia_opt.files.atomic import write_text
from sequoia_opt.files.fields import Fields, shown
from sequoia_opt.types import Document, FloatArray

MOST_ALIASED = 10**6  # values that the aliases of one file may stand for
MOST_BYTES = 2**28  # of a file that is read whole
PIECE = 2**20  # bytes that are read at once
_STREAMED: dict[str, bytes] = {}  # what came from pipes, by path
_ASIDE = "a table set aside"
_TABLE = re.compile(r"^(?P<key>\w+):\n(?P<rows>(?:- \[[\d, \n]*\]\n)+)(?=\w|\Z)", re.MULTILINE)

try:  # the C parser reads a profile some ten times faster
    from yaml import CSafeDumper as _Dumper
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeDumper as _Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class _Loader(_SafeLoader):
    """Knows what JSON knows: a date is text. Merges no more than a file could need."""

    merged = 0  # fields put into mappings by merge keys so far

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what merge keys (<<) stand for; each may stand for what others stand for."""
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                continue
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in parts:
                if isinstance(part, yaml.MappingNode):
                    self.flatten_mapping(part)
                    self.merged += len(part.value)
                if self.merged > MOST_ALIASED:
                    raise ValueError(f"its merge keys stand for more than {MOST_ALIASED} fields")
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in kinds if not tag.endswith(":timestamp")]
    for first, kinds in _SafeLoader.yaml_implicit_resolvers.items()
}


def read_text(path: str | Path) -> str:
    """A text file's content.

    Raises:
        SequoiaError: the file is missing or unreadable.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SequoiaError(
            f"{path}: cannot be read (byte {error.start + 1} is not UTF-8 text)"
        ) from None


def read_bytes(path: str | Path) -> bytes:
    """A file's content; a pipe's too, which can be read only once, as often as it is asked for.

    Raises:
        SequoiaError: the file is missing, unreadable, or larger than any of this program's.
    """
    name = str(path)
    if name in _STREAMED:
        return _STREAMED[name]
    try:
        with open(path, "rb") as stream:
            content = _read_at_most(stream, MOST_BYTES + 1)
            once = not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except FileNotFoundError:
        raise SequoiaError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise SequoiaError(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(content) > MOST_BYTES:
        raise SequoiaError(f"{path}: cannot be read (it is larger than {MOST_BYTES >> 20} MiB)")
    if once:
        _STREAMED[name] = content
    return content


def _read_at_most(stream: BinaryIO, count: int) -> bytes:
    """So many bytes of a stream, or as many as there are; memory is taken for those alone."""
    pieces: list[bytes] = []
    while count > 0 and (piece := stream.read(min(count, PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def read_document(path: str | Path, format_name: str, version: int) -> Document:
    """Parse a JSON or YAML file, by its ending, and check its `format` and `version`.

    Raises:
        SequoiaError: the file is missing, unreadable, malformed or of another kind.
    """
    document = _parsed(Path(path))
    fields = Fields(document, str(path))
    found = fields.text("format")
    if found != format_name:
        raise SequoiaError(f"{path}: format: found {found!r}, expected {format_name!r}")
    found_version = fields.integer("version", minimum=1)
    if found_version > version:
        raise SequoiaError(
            f"{path}: version: found {found_version}, this program reads up to {version}"
        )
    return document


def parse_document(path: Path) -> Document:
    """A JSON or YAML file, by its ending, whatever its `format` is.

    Raises:
        SequoiaError: the file is missing, unreadable or malformed.
    """
    return _parsed(path)


def _parsed(path: Path) -> Document:
    """A JSON or YAML file, by its ending."""
    text = read_text(path)
    if not text.strip():
        raise SequoiaError(f"{path}: is empty")
    if path.suffix == ".jsonl":
        raise SequoiaError(
            f"{path}: found a file of lines, as datasets are, expected one document; a dataset "
            "goes with --dataset, or for `decode` with --prompts"
        )
    try:
        document = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
        document = _check_plain(document)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise SequoiaError(f"{path}: not valid {kind} ({reason_of(error)})") from None
    if not isinstance(document, dict):
        raise SequoiaError(f"{path}: expected a mapping with a `format` field")
    if _depth(document) > DEEPEST:
        raise SequoiaError(f"{path}: found {TOO_DEEP}, expected fewer")
    return document


def _depth(document: Any) -> int:
    """How many lists and mappings are in one another; of what has no end, one more than may be."""
    level, depth = [document], 0
    while level and depth <= DEEPEST:
        inner = {
            id(value): value
            for part in level
            for value in (part.values() if isinstance(part, dict) else part)
            if isinstance(value, dict | list)
        }
        level, depth = list(inner.values()), depth + 1
    return depth


def _check_plain(document: Any) -> Any:
    """Refuse what could not be written again as JSON, or would grow beyond all bounds.

    Returns:
        The document, with a copy of its own at each place where YAML has an alias.

    Raises:
        ValueError: aliases that stand for millions of values or for what they are in, a number
            that is not finite, text that is not Unicode, or something else altogether.
    """
    waiting, met, is_shared = [document], set(), False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            if id(value) in met:
                is_shared = True
                continue
            met.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"found the number {value}, expected a finite one")
        elif isinstance(value, str):
            if not value.isascii():
                value.encode()
        elif value is not None and not isinstance(value, int):
            raise ValueError(f"found {shown(value)}, expected text, a number, a list or a mapping")
    return _without_aliases(document) if is_shared else document


def _without_aliases(document: Any) -> Any:
    """A document whose parts are each there once, of one in which some are shared.

    Raises:
        ValueError: it would have too many values, or no end.
    """
    counts: dict[int, int] = {}  # of values, by the part's identity
    written = 0

    def count(part: Any) -> int:
        nonlocal written
        if not isinstance(part, dict | list):
            return 1
        if id(part) not in counts:
            counts[id(part)] = 0  # not known yet, as only something in it could find out
            inner = list(part.values()) if isinstance(part, dict) else part
            written += 1 + sum(not isinstance(value, dict | list) for value in inner)
            counts[id(part)] = 1 + sum(map(count, inner))
        elif not counts[id(part)]:
            raise ValueError("found an alias of a part inside this part itself")
        return counts[id(part)]

    def copy(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: copy(value) for key, value in part.items()}
        return [copy(value) for value in part] if isinstance(part, list) else part

    if count(document) - written > MOST_ALIASED:
        raise ValueError(f"its aliases stand for more than {MOST_ALIASED} values")
    return copy(document)


def yaml_value(text: str) -> Any:
    """What a YAML text says, its aliases as copies.

    Raises:
        ValueError: it is no YAML, or no plain data.
    """
    try:
        return _check_plain(yaml.load(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(one_line(error)) from None


def _parse_yaml(text: str) -> Any:
    """A YAML document; its tables of whole numbers by the JSON parser, fifty times as fast.

    That is, where a top-level field is a list of lists as this program writes them, the same in
    both languages: rank traces are nearly all there is to read of an acceptance file.
    """
    tables: dict[str, list[list[int]]] = {}

    def aside(found: re.Match[str]) -> str:
        rows = found["rows"].replace("\n- [", "\n, [")[len("- ") :]
        try:
            tables[found["key"]] = json.loads(f"[{rows}]")
        except ValueError:
            return found[0]
        return f"{found['key']}: {_ASIDE}\n" + "\n" * rows.count("\n")  # lines keep their numbers

    document = yaml.load(_TABLE.sub(aside, text), Loader=_Loader)
    if tables and isinstance(document, dict) and all(document.get(k) == _ASIDE for k in tables):
        return document | tables
    return (
        yaml.load(text, Loader=_Loader) if tables else document
    )  # a key that YAML reads otherwise


def write_document(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write JSON or YAML, by the path's ending, in one piece: the old file or the new one.

    Raises:
        SequoiaError: the file cannot be written; what was there before is untouched.
    """
    json_wanted = Path(path).suffix == ".json"
    write_text(path, to_json(document) if json_wanted else to_yaml(document))


def to_json(document: Mapping[str, Any]) -> str:
    """JSON with one field a line and its lists on that line."""
    lines = (
        f"  {json.dumps(key)}: {json.dumps(plain(value), allow_nan=False)}"
        for key, value in document.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def to_yaml(document: Mapping[str, Any]) -> str:
    """YAML in the order of the mapping, innermost lists on one line."""
    text: str = yaml.dump(
        plain(document),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return text


def plain(value: Any, spell_out: bool = True) -> Any:
    """`value` with numpy's scalars and arrays, tuples and paths made into built-in types.

    Args:
        spell_out: write half characters, which file names may have, as backslashes and digits;
            else texts stay as they are.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, spell_out) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), spell_out)
    if isinstance(value, list | tuple):
        return [plain(item, spell_out) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        value = str(value)
    if spell_out and isinstance(value, str) and not value.isascii():
        return value.encode(errors="backslashreplace").decode()
    return value


def rounded(values: FloatArray | list[float] | float, digits: int = 6) -> Any:
    """Numbers as they go into a file: `digits` significant ones."""
    if isinstance(values, int | float | np.floating):
        return float(f"{float(values):.{digits}g}")
    return [rounded(value, digits) for value in values]
