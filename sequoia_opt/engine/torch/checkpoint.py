"""A model's safetensors files, read piece by piece.

Explicit reads into memory that is there already, and the page cache given back behind them: what
a process holds is what it asked for, and a model may be larger than the memory. Knows names,
bytes and dtypes; knows nothing of models.
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

PIECE = 2**23  # bytes that are converted at a time, where the file has another dtype, or compared
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
    """An open file, and what it was when it was opened: size and time of its last change."""

    path: Path
    descriptor: int
    state: tuple[int, int]


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: bytes `start` to `end` of a file."""

    file: _File
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """The tensors in a model's safetensors files.

    Attributes:
        names: of all tensors.
    """

    def __init__(self, source: str) -> None:
        """Open a model's files and read where everything lies.

        Args:
            source: hub id or local folder.

        Raises:
            SequoiaError: there are none, or one is damaged.
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
        """Of all tensors."""
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._joined[name][0] if name in self._joined else self._entries[name].shape

    def join(self, name: str, rows: list[list[str]]) -> None:
        """Have a tensor of that name, made of matrices, as a mixture's experts are.

        Args:
            rows: for each of its first indices the matrices that lie one below another there.

        Raises:
            ValueError: they do not fit together.
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
            into: contiguous, in host memory, of its shape; converted to its dtype.

        Returns:
            How many bytes were read.

        Raises:
            SequoiaError: the file has changed or cannot be read.
        """
        if name in self._joined:
            return sum(
                self.read(part, below)
                for parts, matrix in zip(self._joined[name][1], into, strict=True)
                for part, below in zip(
                    parts, matrix.split([self.shape(part)[0] for part in parts]), strict=True
                )
            )
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
        _give_back(entry)
        return entry.end - entry.start

    def same(self, first: str, second: str) -> bool:
        """Whether two names are of the same bytes, read as the same.

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
        _give_back(one)
        _give_back(other)
        return equal

    def _bytes(self, entry: _Entry, start: int) -> Tensor:
        """A piece of a tensor's bytes."""
        found = torch.empty(min(PIECE, entry.end - entry.start - start), dtype=torch.uint8)
        self._read(entry, entry.start + start, found)
        return found

    def _read(self, entry: _Entry, offset: int, into: Tensor) -> None:
        """Fill `into`, bytes, from a place in the entry's file."""
        file, waiting = entry.file, memoryview(into.numpy().data)
        try:
            if _state(file.descriptor) != file.state:
                raise SequoiaError(f"{file.path}: has changed since it was opened; load it again")
            while waiting:
                count = os.preadv(file.descriptor, [waiting], offset)
                if not count:
                    raise SequoiaError(f"{file.path}: is shorter than its header says")
                waiting, offset = waiting[count:], offset + count
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
    """A tensor as the header has it.

    Args:
        data: where the tensors' bytes begin.
    """
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    start, end = (data + int(offset) for offset in entry["data_offsets"])
    there = data <= start <= end <= file.state[0] and min(shape, default=0) >= 0
    if not there or end - start != math.prod(shape) * dtype.itemsize:
        found = f"bytes {start - data} to {end - data}"
        raise ValueError(f"{found} for {list(shape)} of {entry['dtype']}")
    return _Entry(file, start, end, dtype, shape)


def _give_back(entry: _Entry) -> None:
    """Have the system keep nothing of a tensor's bytes in its page cache."""
    if hasattr(os, "posix_fadvise"):  # not everywhere
        os.posix_fadvise(
            entry.file.descriptor, entry.start, entry.end - entry.start, os.POSIX_FADV_DONTNEED
        )


def _state(descriptor: int) -> tuple[int, int]:
    """Size and time of the last change."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns
