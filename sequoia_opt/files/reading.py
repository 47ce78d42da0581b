"""A file's whole content, as bytes or text, with one-line errors.

Knows paths, pipes and encodings. Knows nothing of formats.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from sequoia_opt.errors import SequoiaError, reason_of

MOST_BYTES = 2**28  # a larger file is none of this program's
CHUNK = 2**20  # bytes per read
POINTER = b"version https://git-lfs"  # the beginning of a git-lfs pointer
_PIPED: dict[str, bytes] = {}  # what came through pipes, by path


def read_text(path: str | Path) -> str:
    """A text file's content.

    Raises:
        SequoiaError: the file is missing, unreadable or not UTF-8.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SequoiaError(
            f"{path}: cannot be read (byte {error.start + 1} is not UTF-8 text)"
        ) from None


def read_bytes(path: str | Path) -> bytes:
    """A file's content.

    What comes through a pipe can be read only once, so it is remembered: a command may parse a
    file and then take its fingerprint.

    Raises:
        SequoiaError: the file is missing, unreadable or larger than `MOST_BYTES`.
    """
    name = str(path)
    if name in _PIPED:
        return _PIPED[name]
    try:
        with open(path, "rb") as stream:
            content = _read_at_most(stream, MOST_BYTES + 1)
            is_pipe = not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except FileNotFoundError:
        raise SequoiaError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise SequoiaError(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(content) > MOST_BYTES:
        raise SequoiaError(f"{path}: cannot be read (it is larger than {MOST_BYTES >> 20} MiB)")
    if is_pipe:
        _PIPED[name] = content
    return content


def check_pointer(path: Path) -> None:
    """Refuse the pointer that a clone without git-lfs has in place of a large file.

    Raises:
        SequoiaError: the file is one, or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            pointer = stream.read(len(POINTER)) == POINTER
    except OSError as error:
        raise SequoiaError(f"{path}: cannot be read ({error.strerror})") from None
    if pointer:
        raise SequoiaError(
            f"{path}: is a git-lfs pointer, not the file; run `git lfs pull` in its folder"
        )


def _read_at_most(stream: BinaryIO, count: int) -> bytes:
    """Up to `count` bytes, in chunks: `stream.read(count)` would allocate all of them."""
    chunks: list[bytes] = []
    while count > 0 and (chunk := stream.read(min(count, CHUNK))):
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
