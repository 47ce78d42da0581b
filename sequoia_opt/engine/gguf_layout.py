"""The bytes of a GGUF file: where its metadata, its tensors' descriptions and its tensors lie.

Follows the GGUF specification, versions 2 and 3. Knows counts, kinds and offsets. Knows nothing of
what a key means, but for the alignment of tensors.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES

from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.files.reading import check_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
# The struct format of each kind of number, by its code in the file.
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
# Of each type of tensor: how many numbers are packed together, and into how many bytes.
BLOCKS = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
MOST_NESTED = 4  # arrays within arrays
MOST_DIMENSIONS = 4  # of a tensor in ggml
MOST_NUMBERS = 2**63  # of a tensor, and bytes of a file
ALIGNMENT = 32  # bytes, where the metadata gives no other
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Field:
    """A value of the metadata.

    Attributes:
        start, end: its bytes in the file, without key and kind.
        kind: its code in the file.
        value: a number, truth value or text; None for an array, which `array_of` reads.
        item_kind, count, items: of an array: its items' kind, their number, where they start.
    """

    start: int
    end: int
    kind: int
    value: Any = None
    item_kind: int = 0
    count: int = 0
    items: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor's description.

    Attributes:
        shape: its lengths, the fastest dimension first, as ggml counts them.
        type: ggml's code of its numbers.
        start: offset of its first byte in the file.
        size: bytes; None for a type that is not known here.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    size: int | None


@dataclass(frozen=True)
class Layout:
    """A file's header.

    Attributes:
        data: offset of the tensors' bytes, which is where the header ends.
        alignment: bytes; a tensor starts at a multiple of it after `data`.
    """

    path: Path
    fields: dict[str, Field]
    tensors: tuple[Tensor, ...]
    data: int
    alignment: int


class _CutShortError(Exception):
    """The file ends within its header."""


class _DamagedError(Exception):
    """The header cannot be what it says; the message says why."""


def read_layout(path: Path) -> Layout:
    """The header of one GGUF file.

    Raises:
        SequoiaError: the file is missing, no GGUF, cut short, damaged, or of a byte order or
            version that is not read here.
    """
    with opened(path) as content:
        _check_beginning(path, content[:8])
        try:
            layout = _read(path, content)
        except (_CutShortError, struct.error, OverflowError):
            raise SequoiaError(
                f"{path}: cut short: its header does not end within the file's {len(content)} "
                "bytes; download it again"
            ) from None
        except _DamagedError as error:
            raise SequoiaError(f"{path}: damaged header ({error}); download it again") from None
        _check_end(layout, len(content))
    return layout


@contextmanager
def opened(path: Path) -> Iterator[mmap.mmap]:
    """A file's content, read as it is used.

    Raises:
        SequoiaError: the file is missing, a folder, empty or unreadable.
    """
    if path.is_dir():
        raise SequoiaError(f"{path}: is a folder; name a .gguf file in it")
    try:
        with open(path, "rb") as stream:
            if not stream.seek(0, 2):
                raise SequoiaError(f"{path}: is empty; download it again")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                yield content
    except FileNotFoundError:
        raise SequoiaError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # also one without a size, like a pipe
        raise SequoiaError(f"{path}: cannot be read ({reason_of(error)})") from None


def array_of(path: Path, field: Field) -> list[Any]:
    """The items of an array in a file's metadata; an inner array is a list.

    Raises:
        SequoiaError: the file cannot be read.
    """
    with opened(path) as content:
        try:
            return _items(content, field.items, field.item_kind, field.count)[0]
        except (_CutShortError, struct.error):
            raise SequoiaError(f"{path}: has changed since it was opened; load it again") from None


def _check_beginning(path: Path, start: bytes) -> None:
    """Refuse what is no GGUF of a version and byte order that is read here."""
    if start[:4] != MAGIC:
        check_pointer(path)
        raise SequoiaError(
            f"{path}: is not a GGUF file: it starts with {start[:4]!r}, expected {MAGIC!r}; "
            "download it again, or name the model's folder"
        )
    version = int.from_bytes(start[4:8], "little")
    if version in VERSIONS or len(start) < 8:
        return
    if version % 2**16 == 0 and version:
        raise SequoiaError(
            f"{path}: is written for big-endian machines; convert it for little-endian ones with "
            "gguf-convert-endian, or download such a file"
        )
    versions = " or ".join(map(str, VERSIONS))
    remedy = (
        "convert the model again with today's llama.cpp" if version < 2 else "update this program"
    )
    raise SequoiaError(f"{path}: found GGUF version {version}, expected {versions}; {remedy}")


def _read(path: Path, content: mmap.mmap) -> Layout:
    """See `read_layout`; the file's beginning is checked.

    Raises:
        _CutShortError, _DamagedError, struct.error, OverflowError: see the classes; struct raises
            its own where a number lies beyond the file's end.
    """
    tensor_count, field_count = struct.unpack_from("<QQ", content, 8)
    position = 24
    fields: dict[str, Field] = {}
    for _ in range(field_count):
        key, position = _text(content, position)
        kind = _U32.unpack_from(content, position)[0]
        fields[key] = entry = _field(content, position + 4, kind)
        position = entry.end
    alignment = ALIGNMENT
    if "general.alignment" in fields:
        alignment = fields["general.alignment"].value
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _DamagedError(f"general.alignment: found {alignment!r}, expected a power of two")
    descriptions = []
    for _ in range(tensor_count):
        name, position = _text(content, position)
        (dimensions,) = _U32.unpack_from(content, position)
        if dimensions > MOST_DIMENSIONS:
            raise _DamagedError(f"{name!r}: found {dimensions} dimensions, expected at most 4")
        *shape, type_code, offset = struct.unpack_from(f"<{dimensions}QIQ", content, position + 4)
        position += 4 + 8 * dimensions + 12
        descriptions.append((name, tuple(shape), type_code, offset))
    data = position + -position % alignment
    tensors = [
        Tensor(name, shape, code, data + offset, _bytes(name, shape, code))
        for name, shape, code, offset in descriptions
    ]
    return Layout(path, fields, tuple(tensors), data, alignment)


def _bytes(name: str, shape: tuple[int, ...], type_code: int) -> int | None:
    """Bytes of a tensor; None for a type that is not known here."""
    if prod(shape) >= MOST_NUMBERS:
        raise _DamagedError(f"{name!r}: its shape is {' x '.join(map(str, shape))}")
    if type_code not in BLOCKS:
        return None
    block, block_bytes = BLOCKS[type_code]
    if shape and shape[0] % block:
        raise _DamagedError(f"{name!r}: rows of {shape[0]} numbers are no blocks of {block}")
    return prod(shape) // block * block_bytes


def _check_end(layout: Layout, size: int) -> None:
    """Refuse a file that ends before its last tensor does."""
    ends = [(tensor.start + (tensor.size or 0), tensor.name) for tensor in layout.tensors]
    end, name = max(ends, default=(0, ""))
    if end > size:
        raise SequoiaError(
            f"{layout.path}: cut short: {end - size} bytes are missing at its end (tensor {name!r} "
            f"ends at byte {end}, the file has {size}); download it again"
        )


def _field(content: mmap.mmap, start: int, kind: int) -> Field:
    """The value that starts at an offset; of an array only where it lies."""
    if kind == ARRAY:
        item_kind, count = struct.unpack_from("<IQ", content, start)
        items = start + 12
        end = _skip(content, items, item_kind, count)
        return Field(start, end, kind, None, item_kind, count, items)
    [value], end = _items(content, start, kind, 1)
    return Field(start, end, kind, value)


def _skip(content: mmap.mmap, position: int, kind: int, count: int, depth: int = 1) -> int:
    """The end of `count` values of a kind."""
    if kind in NUMBERS:
        position += count * struct.calcsize(NUMBERS[kind])
    elif kind == STRING:
        length_at = _U64.unpack_from
        for _ in range(count):  # the longest of all loops: a vocabulary and its merges
            position += 8 + length_at(content, position)[0]
    elif kind == ARRAY and depth < MOST_NESTED:
        for _ in range(count):
            item_kind, length = struct.unpack_from("<IQ", content, position)
            position = _skip(content, position + 12, item_kind, length, depth + 1)
    else:
        raise _DamagedError(f"found a value of kind {kind} at byte {position}")
    if position > len(content):
        raise _CutShortError
    return position


def _items(content: mmap.mmap, position: int, kind: int, count: int) -> tuple[list[Any], int]:
    """`count` values of a kind, and where they end."""
    end = _skip(content, position, kind, count)
    if kind in NUMBERS:
        return list(struct.unpack_from(f"<{count}{NUMBERS[kind]}", content, position)), end
    values: list[Any] = []
    value: Any
    for _ in range(count):
        if kind == STRING:
            value, position = _text(content, position)
        else:
            item_kind, length = struct.unpack_from("<IQ", content, position)
            value, position = _items(content, position + 12, item_kind, length)
        values.append(value)
    return values, end


def _text(content: mmap.mmap, position: int) -> tuple[str, int]:
    """The text that starts at an offset, and where it ends; bytes that are no text are replaced."""
    end = position + 8 + _U64.unpack_from(content, position)[0]
    if end > len(content):
        raise _CutShortError
    return content[position + 8 : end].decode("utf-8", "replace"), end
