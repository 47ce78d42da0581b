"""Dataset files to documents: JSON, JSON Lines, plain text and Parquet.

Knows file formats. Knows nothing of what a record's fields mean.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure.records import Document, from_records, from_rows, records_in, unusable

PIECE = 4000  # characters of a piece of a plain text file
LONGEST_RECORD = 2**25  # bytes of a line; to parse it takes a few times its size in memory
LARGEST_VALUE = 2**30  # bytes of a .jsonl file that is also tried as values over several lines
EXPECTED = ".jsonl, .json, .txt or .parquet file, the first three also .gz"
_NOT_JSON = "not valid JSON"


def is_dataset_file(path: Path) -> bool:
    """Whether the path's ending is one that `read_file` reads."""
    return _reader(path) is not None


def read_file(path: Path) -> list[Document]:
    """The documents of a file, also those that cannot be used.

    Raises:
        SequoiaError: the file is missing or unreadable, or a package to read it is missing.
    """
    reader = _reader(path)
    assert reader is not None
    if not path.is_file():
        raise SequoiaError(f"{path}: no such file")
    try:
        return reader(path)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None


def without_gz(path: Path) -> Path:
    """The path without a final .gz."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def _reader(path: Path) -> Callable[[Path], list[Document]] | None:
    """The function that reads files of the path's ending."""
    readers: dict[str, Callable[[Path], list[Document]]] = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".txt": _read_text,
    }
    if path.suffix.lower() == ".parquet":
        return _read_parquet
    return readers.get(without_gz(path).suffix.lower())


def _opened(path: Path) -> IO[bytes]:
    opener: Callable[[Path], Any] = gzip.open if path.suffix == ".gz" else partial(open, mode="rb")
    stream: IO[bytes] = opener(path)
    return stream


def _read_jsonl(path: Path) -> list[Document]:
    """A record on each line, or else as `_read_json`: some .jsonl files are indented."""
    documents = list(_from_lines(path))
    is_small = path.stat().st_size <= LARGEST_VALUE
    if is_small and documents and documents[0].problem.startswith(_NOT_JSON):
        values = _values(path)
        if values is not None:
            return _from_values(values, path)
    return documents


def _read_json(path: Path) -> list[Document]:
    """One JSON value, or several one after the other; or else as `_read_jsonl`."""
    values = _values(path)
    return list(_from_lines(path)) if values is None else _from_values(values, path)


def _from_lines(path: Path) -> Iterator[Document]:
    """The documents of a JSON Lines file."""
    with _opened(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            where = f"{path}: line {number}"
            if line is None:
                yield unusable(where, f"longer than {LONGEST_RECORD // 2**20} MiB")
            elif line.strip():
                try:
                    value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except json.JSONDecodeError as error:
                    yield unusable(where, f"{_NOT_JSON} ({error.msg})")
                except UnicodeDecodeError as error:
                    yield unusable(where, f"not UTF-8 ({error.reason})")
                except (RecursionError, ValueError) as error:
                    yield unusable(where, f"cannot be read as JSON ({one_line(error)})")
                else:
                    yield from from_records(records_in(value), where)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """A stream's lines, with None in place of a line longer than `LONGEST_RECORD`."""
    while line := stream.readline(LONGEST_RECORD):
        is_complete = len(line) < LONGEST_RECORD or line.endswith(b"\n")
        yield line if is_complete else None
        while not is_complete:
            line = stream.readline(LONGEST_RECORD)
            is_complete = len(line) < LONGEST_RECORD or line.endswith(b"\n")


def _values(path: Path) -> list[Any] | None:
    """The JSON values that a file consists of; None if it holds anything else."""
    with _opened(path) as stream:
        text = stream.read().decode("utf-8-sig")
    decoder = json.JSONDecoder()
    values: list[Any] = []
    position = 0
    try:
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            value, position = decoder.raw_decode(text, position)
            values.append(value)
    except (ValueError, RecursionError):
        return None
    return values


def _from_values(values: Sequence[Any], path: Path) -> list[Document]:
    records = [record for value in values for record in records_in(value)]
    return list(from_rows(records, str(path)))


def _read_text(path: Path) -> list[Document]:
    """A plain text file, cut at line ends into pieces of about `PIECE` characters."""
    with _opened(path) as stream:
        lines = stream.read().decode("utf-8-sig").splitlines(keepends=True)
    pieces, piece = [], ""
    for line in lines:
        for start in range(0, len(line), PIECE):
            piece += line[start : start + PIECE]
            if len(piece) >= PIECE:
                pieces.append(piece)
                piece = ""
    if piece:
        pieces.append(piece)
    return [
        Document("", text, is_whole=True, where=f"{path}: piece {number}")
        for number, text in enumerate(pieces, start=1)
    ]


def _read_parquet(path: Path) -> list[Document]:
    if importlib.util.find_spec("pyarrow") is None:
        raise SequoiaError(f"{path}: reading .parquet needs pyarrow; pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SequoiaError(f"{path}: cannot be read ({one_line(error)})") from None
    return list(from_rows(rows, str(path)))
