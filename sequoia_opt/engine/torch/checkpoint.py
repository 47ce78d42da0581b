"""Reads the tensors of a model's safetensors files.

Reads go into memory that the caller has allocated, and the page cache is released after them, so
that a model may be larger than the memory. Knows names, bytes and dtypes. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sequoia_opt.engine.torch.weight_files import read_header, weight_files
from sequoia_opt.errors import SequoiaError

PIECE = 2**23  # bytes that are converted or compared at a time
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class _File:
    """An open file, with its size and the time of its last change when it was opened."""

    path: Path
    descriptor: int
    state: tuple[int, int]


@dataclass(frozen=True)
class _Entry:
    """A tensor in the files: bytes `start` to `end` of one of them."""

    file: _File
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors in a model's safetensors files.

    Attributes:
        names: of all tensors in the files.
    """

    def __init__(self, source: str) -> None:
        """Open a model's files and read their headers.

        Args:
            source: hub id or local folder.

        Raises:
            SequoiaError: the model has no safetensors files, or one is damaged.
        """
        self.source = source
        self._entries: dict[str, _Entry] = {}
        self._joined: dict[str, tuple[tuple[int, ...], list[list[str]]]] = {}
        self._files: list[_File] = []
        self._piece = torch.empty(0, dtype=torch.uint8)
        for path in weight_files(source, safe=True):
            self._open(path)

    def __del__(self) -> None:
        for file in self._files:
            os.close(file.descriptor)

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors in the files."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._joined[name][0] if name in self._joined else self._entries[name].shape

    def join(self, name: str, rows: list[list[str]]) -> None:
        """Add a tensor that is stacked from matrices, like a mixture's experts.

        Args:
            rows: for each index of its first dimension, the matrices that are concatenated there.

        Raises:
            ValueError: the matrices' shapes do not fit together.
        """
        shapes = [[self.shape(part) for part in parts] for parts in rows]
        heights = {sum(shape[0] for shape in parts) for parts in shapes}
        widths = {shape[1:] for parts in shapes for shape in parts}
        if len(heights) != 1 or len(widths) != 1:
            raise ValueError("matrices of different sizes")
        self._joined[name] = (len(rows), heights.pop(), *widths.pop()), rows

    def read(self, name: str, into: Tensor) -> int:
        """Read a tensor.

        Args:
            into: contiguous, in host memory, of the tensor's shape; values are converted to its
                dtype.

        Returns:
            The number of bytes read.

        Raises:
            SequoiaError: the file has changed or cannot be read.
        """
        if name in self._joined:
            return self._read_joined(self._joined[name][1], into)
        entry = self._entries[name]
        flat = into.view(-1)
        if entry.dtype == into.dtype:
            self._read(entry, entry.start, flat.view(torch.uint8))
        else:
            width = entry.dtype.itemsize
            if not len(self._piece):
                self._piece = torch.empty(PIECE, dtype=torch.uint8)
            for first in range(0, len(flat), PIECE // width):
                part = flat[first : first + PIECE // width]
                piece = self._piece[: len(part) * width]
                self._read(entry, entry.start + first * width, piece)
                part.copy_(piece.view(entry.dtype))
        _release_page_cache(entry)
        return entry.end - entry.start

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes.

        Raises:
            SequoiaError: a file has changed or cannot be read.
        """
        if first == second:
            return True
        if first in self._joined or second in self._joined:
            return False
        one, other = self._entries[first], self._entries[second]
        if one == other or (one.dtype, one.shape) != (other.dtype, other.shape):
            return one == other
        equal = all(
            torch.equal(self._bytes(one, start), self._bytes(other, start))
            for start in range(0, one.end - one.start, PIECE)
        )
        _release_page_cache(one)
        _release_page_cache(other)
        return equal

    def _read_joined(self, rows: list[list[str]], into: Tensor) -> int:
        """Read a stacked tensor, see `join`; returns the number of bytes read."""
        count = 0
        for names, matrix in zip(rows, into, strict=True):
            heights = [self.shape(name)[0] for name in names]
            for name, part in zip(names, matrix.split(heights), strict=True):
                count += self.read(name, part)
        return count

    def _bytes(self, entry: _Entry, start: int) -> Tensor:
        """A piece of a tensor's bytes."""
        piece = torch.empty(min(PIECE, entry.end - entry.start - start), dtype=torch.uint8)
        self._read(entry, entry.start + start, piece)
        return piece

    def _read(self, entry: _Entry, offset: int, into: Tensor) -> None:
        """Fill the bytes `into` from an offset in the entry's file."""
        file, unread = entry.file, memoryview(into.numpy().data)
        try:
            if _state(file.descriptor) != file.state:
                raise SequoiaError(f"{file.path}: has changed since it was opened; load it again")
            while unread:
                count = os.preadv(file.descriptor, [unread], offset)
                if not count:
                    raise SequoiaError(
                        f"{file.path}: is shorter than its header says; download the file again"
                    )
                unread, offset = unread[count:], offset + count
        except OSError as error:
            raise SequoiaError(f"{file.path}: cannot be read ({error.strerror})") from None

    def _open(self, path: Path) -> None:
        """Add the tensors of a file."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
            file = _File(path, descriptor, _state(descriptor))
            self._files.append(file)
            header, data = read_header(descriptor, path)
            for name, entry in header.items():
                self._entries[name] = _entry(file, data, entry)
        except OSError as error:
            raise SequoiaError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise SequoiaError(f"{path}: damaged weights ({error})") from None


def _entry(file: _File, data: int, entry: dict[str, Any]) -> _Entry:
    """A tensor from its entry in the header.

    Args:
        data: offset of the tensors' bytes in the file.

    Raises:
        ValueError: the entry does not fit the file, or its shape.
    """
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    start, end = (data + int(offset) for offset in entry["data_offsets"])
    possible = data <= start <= end <= file.state[0] and min(shape, default=0) >= 0
    if not possible or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"bytes {start - data} to {end - data} for {list(shape)} of {entry['dtype']}"
        )
    return _Entry(file, start, end, dtype, shape)


def _release_page_cache(entry: _Entry) -> None:
    """Tell the system not to keep a tensor's bytes in its page cache."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        os.posix_fadvise(
            entry.file.descriptor, entry.start, entry.end - entry.start, os.POSIX_FADV_DONTNEED
        )


def _state(descriptor: int) -> tuple[int, int]:
    """A file's size, and the time of its last change in nanoseconds."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
