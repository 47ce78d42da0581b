"""Finds the files of a model's weights, counts their tensors, and computes a digest of them.

The digest differs between models of the same shapes. Knows file names and safetensors headers.
Knows nothing of models, and reads no whole tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import cached_file

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.reading import check_pointer

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
LONGEST_HEADER = 10**8  # bytes; the format allows no more
# The digest reads this many samples of the weights, of this many bytes: a retrained model differs
# in every tensor. The reads take a few hundredths of a second for a model of any size.
SAMPLES, SAMPLE_BYTES = 4096, 64


def model_file(source: str, name: str) -> Path | None:
    """A file of a model's folder or hub repository; None if it has no file of that name.

    Raises:
        SequoiaError: the file is a git-lfs pointer.
    """
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    check_pointer(Path(path))
    return Path(path)


def weight_files(source: str, safe: bool = False) -> list[Path]:
    """The files that transformers loads a model's weights from, in the order of their names.

    Args:
        safe: accept only safetensors files.

    Raises:
        SequoiaError: the model has no such files, one is missing or a git-lfs pointer, or an
            index is damaged or names a file outside the folder.
    """
    pairs = [(SAFE, SAFE_INDEX)] if safe else [(SAFE, SAFE_INDEX), (PICKLED, PICKLED_INDEX)]
    for single, index in pairs:
        if (path := model_file(source, single)) is not None:
            return [path]
        if (path := model_file(source, index)) is not None:
            return _shards(source, path)
    if not safe:
        raise SequoiaError(f"{source}: no weights; expected {SAFE} in the folder")
    raise SequoiaError(
        f"{source}: has no safetensors files, and layers are read from these only; save the model "
        "with save_pretrained"
    )


def _shards(source: str, index: Path) -> list[Path]:
    """The files that an index names, in the order of their names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        parts = [PurePosixPath(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SequoiaError(f"{index}: damaged index ({_brief(error)})") from None
    paths = []
    for name, part in zip(names, parts, strict=True):
        if part.is_absolute() or ".." in part.parts or "\\" in name:
            raise SequoiaError(
                f"{index}: names {name!r}, which leads out of the model's folder; expected a file "
                "in it"
            )
        path = model_file(source, name)
        if path is None:
            raise SequoiaError(f"{index}: names {name}, which is missing; download the model again")
        paths.append(path)
    return paths


def read_header(descriptor: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of the tensors' bytes.

    Raises:
        SequoiaError: the file cannot be read, or is damaged.
    """
    try:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise ValueError("its header does not fit the file")
        header = json.loads(os.pread(descriptor, length, 8))
        if not isinstance(header, dict):
            raise ValueError("its header is not a table of tensors")
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SequoiaError(
            f"{path}: damaged weights ({_brief(error)}); download the file again"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length


def tensor_count(source: str) -> int | None:
    """The number of tensors in a model's files; None if only loading them would tell.

    Raises:
        SequoiaError: the files cannot be read.
    """
    count = 0
    for path in weight_files(source):
        if path.suffix != ".safetensors":
            return None
        descriptor = os.open(path, os.O_RDONLY)
        try:
            count += len(read_header(descriptor, path)[0])
        finally:
            os.close(descriptor)
    return count


def content_digest(paths: Sequence[Path]) -> str:
    """A hash of the files' sizes and of samples of their content: 16 hexadecimal digits.

    Raises:
        SequoiaError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                digest.update(size.to_bytes(8, "little"))
                for start in _sample_offsets(descriptor, path, size, SAMPLES // len(paths)):
                    digest.update(os.pread(descriptor, SAMPLE_BYTES, start))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SequoiaError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:16]


def _sample_offsets(descriptor: int, path: Path, size: int, count: int) -> list[int]:
    """Offsets of the samples in a file.

    In a safetensors file they are the middles and the beginnings of its tensors; in other files
    they are spread evenly.
    """
    count = max(1, count)
    if path.suffix != ".safetensors":
        return [size * i // count for i in range(count)]
    header, data = read_header(descriptor, path)
    spans = []
    for entry in header.values():
        try:
            start, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            continue  # loading the model reports it
        spans.append((start, end))
    spans.sort()
    offsets = [(start + end) // 2 for start, end in spans] + [start for start, _ in spans]
    step = -(-len(offsets) // count) or 1
    return [data + offset for offset in offsets[::step] if 0 <= offset < size]


def _brief(error: Exception) -> str:
    """A parser's message, without the document that it may quote."""
    return " ".join(str(error).split())[:100] or type(error).__name__
