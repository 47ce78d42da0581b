"""Reading and writing the program's files: checked fields, atomic writes, safe YAML.

Knows the envelope that all files share (`format`, `version`) and how to complain about a
field. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import reprlib
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import yaml
from numpy.typing import NDArray

from sequoia_opt.errors import SequoiaError

Document = dict[str, Any]
FloatArray = NDArray[np.float64]
LARGEST = 10**15  # whole number: any that is counted is smaller, and a float still holds it
FINGERPRINT = re.compile(r"([0-9a-f]{16})(?:-([0-9a-f]{16}))?")  # of a model
MOST_ALIASED = 10**6  # values that the aliases of one file may stand for
LONGEST_NAME = 220  # bytes: what file systems take, 255, with room for endings
MOST_BYTES = 2**28  # of a file that is read whole
PIECE = 2**20  # bytes that are read at once
DEEPEST = 100  # lists and mappings in one another
_STREAMED: dict[str, bytes] = {}  # what came from pipes, by path
_PREFIX = ".sequoia-opt-"  # of a file that is not whole yet
_TOO_DEEP = f"more than {DEEPEST} lists and mappings in one another"
_ASIDE = "a table set aside"
_SHORT = reprlib.Repr()  # of which no more is made than is shown
_SHORT.maxstring = _SHORT.maxother = 60
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
        raise SequoiaError(f"{path}: found {_TOO_DEEP}, expected fewer")
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


def is_one_of_several() -> bool:
    """Whether torchrun has started this process and others."""
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return not is_one_of_several() or os.environ.get("RANK", "0") == "0"


def write_document(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write JSON or YAML, by the path's ending, in one piece: the old file or the new one.

    Raises:
        SequoiaError: the file cannot be written; what was there before is untouched.
    """
    json_wanted = Path(path).suffix == ".json"
    write_text(path, to_json(document) if json_wanted else to_yaml(document))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in one piece, see `write_bytes`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one piece: the old file or the new one.

    Raises:
        SequoiaError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    if not is_first_process():
        return
    try:
        if is_stream(path):
            path.write_bytes(content)
            return
        real = _replaceable(path)
        mode = real.stat().st_mode & 0o777 if real.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=real.parent, prefix=_PREFIX)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, real)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise SequoiaError(f"{path}: cannot be written ({reason_of(error)})") from None


def check_writable(path: str | Path) -> None:
    """Find out before long work, not after it, that `path` cannot be written.

    Raises:
        SequoiaError: the path is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    if not is_first_process():
        return
    if os.path.isdir(path):
        raise SequoiaError(f"{path}: is a folder; name a file to write to")
    try:
        if is_stream(path):
            return
        real = _replaceable(path)
        with tempfile.TemporaryFile(dir=real.parent):
            pass
    except (OSError, ValueError) as error:
        raise SequoiaError(
            f"{path}: cannot be written ({reason_of(error)}); choose another with -o"
        ) from None


def is_stream(path: Path) -> bool:
    """Whether it is a pipe or a device, which is written to and not replaced."""
    in_devices = Path("/dev") in Path(os.path.abspath(path)).parents
    return os.path.exists(path) and (in_devices or not os.path.isfile(path))


def _replaceable(path: Path) -> Path:
    """The file that a path stands for, in a folder that is there: a link goes on being one.

    Raises:
        OSError: the path cannot be one, its links lead nowhere but to one another, or the file
            was made read-only, which keeps it from being replaced as from being written to.
    """
    with suppress(FileNotFoundError):
        os.stat(path)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    return real


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


def content_fingerprint(path: str | Path) -> str:
    """Hash of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def same_fingerprint(first: Any, second: Any) -> bool:
    """Whether two values are the same, models' fingerprints in them compared by what both have.

    A fingerprint is of a model's configuration and its weights' shapes, and since weights are
    sampled too, after a hyphen, of what they hold; files from before have the first part alone.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            same_fingerprint(first[key], second[key]) for key in first
        )
    if isinstance(first, str) and isinstance(second, str):
        parts = FINGERPRINT.fullmatch(first), FINGERPRINT.fullmatch(second)
        if parts[0] and parts[1]:
            ends = {part[2] for part in parts if part and part[2]}
            return parts[0][1] == parts[1][1] and len(ends) < 2
    return bool(first == second)


def safe_name(name: str) -> str:
    """A model's or dataset's name as a part of a file name: no separators, no leading dots."""
    kept = "".join(c if c.isalnum() or c in "-._+" else "_" for c in name)
    return short_name(kept.lstrip(".") or "unnamed")


def short_name(stem: str) -> str:
    """A file's name without its ending, cut where no file system would take it; different ones
    stay different."""
    content = os.fsencode(stem)
    if len(content) <= LONGEST_NAME:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:8]
    start = content[: LONGEST_NAME - 1 - len(digest)].decode(errors="ignore")
    return f"{start}_{digest}"


def reason_of(error: BaseException) -> str:
    """Why reading or writing failed, in a few words: of an operating system's error its own, as
    the path is known."""
    if isinstance(error, OSError):
        return error.strerror or one_line(error)
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return one_line(error)


def one_line(error: BaseException) -> str:
    """An exception's message with its line breaks folded."""
    return " ".join(str(error).split()) or type(error).__name__


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


class Fields:
    """Checked access to one mapping of a file; every complaint names the file and the field."""

    def __init__(self, mapping: Any, where: str) -> None:
        if not isinstance(mapping, dict):
            raise SequoiaError(f"{where}: found {shown(mapping)}, expected a mapping")
        self.mapping = mapping
        self.where = where

    def fail(self, key: str, expected: str) -> SequoiaError:
        """The error for a field that is not what it should be."""
        if key not in self.mapping:
            return SequoiaError(f"{self.where}: {key}: missing, expected {expected}")
        found = shown(self.mapping[key])
        return SequoiaError(f"{self.where}: {key}: found {found}, expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.mapping.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, "text")
        return value

    def integer(self, key: str, minimum: int = 0, default: int | None = None) -> int:
        """A whole number of at least `minimum`."""
        value = self.mapping.get(key, default)
        if not _is_whole(value, minimum):
            raise self.fail(key, _whole(value, minimum))
        return int(value)

    def number(
        self, key: str, low: float = -math.inf, high: float = math.inf, default: float | None = None
    ) -> float:
        """A finite number in [low, high]; YAML's safe loader reads `1e-5` as text: coerced."""
        value = finite(self.mapping.get(key, default))
        if value is None or not low <= value <= high:
            raise self.fail(key, _range("a number", low, high))
        return value

    def numbers(self, key: str, low: float = -math.inf, high: float = math.inf) -> FloatArray:
        """A non-empty list of finite numbers in [low, high]."""
        values = self.mapping.get(key)
        expected = _range("a list of numbers", low, high)
        if not isinstance(values, list) or not values:
            raise self.fail(key, expected)
        converted = [finite(value) for value in values]
        for place, value in enumerate(converted):
            if value is None or not low <= value <= high:
                raise SequoiaError(
                    f"{self.where}: {key}[{place}]: found {shown(values[place])}, "
                    f"expected {_range('a number', low, high)}"
                )
        return np.array(converted, dtype=np.float64)

    def integers(self, key: str, minimum: int = 0) -> list[int]:
        """A list of whole numbers of at least `minimum`."""
        values = self.mapping.get(key)
        if not isinstance(values, list):
            raise self.fail(key, "a list of whole numbers")
        for place, value in enumerate(values):
            if not _is_whole(value, minimum):
                raise SequoiaError(
                    f"{self.where}: {key}[{place}]: found {shown(value)}, "
                    f"expected {_whole(value, minimum)}"
                )
        return values

    def section(self, key: str) -> Fields:
        """A nested mapping."""
        if not isinstance(self.mapping.get(key), dict):
            raise self.fail(key, "a mapping")
        return Fields(self.mapping[key], f"{self.where}: {key}")

    def sections(self, key: str) -> list[Fields]:
        """A non-empty list of nested mappings."""
        values = self.mapping.get(key)
        if not isinstance(values, list) or not values:
            raise self.fail(key, "a list of mappings")
        return [Fields(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(values)]


def _is_whole(value: Any, minimum: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= LARGEST


def _whole(value: Any, minimum: int) -> str:
    """What was expected instead of the value."""
    too_large = isinstance(value, int) and value > LARGEST
    return f"a whole number of at {f'most {LARGEST}' if too_large else f'least {minimum}'}"


def finite(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: Any) -> str:
    """A short form of a value for an error message."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _range(kind: str, low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return kind
    if high == math.inf:
        return f"{kind} of at least {low:g}"
    return f"{kind} between {low:g} and {high:g}"
