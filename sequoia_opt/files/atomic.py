"""Atomic writes: a path holds a file's old content or its new content, never a part of it.

Knows paths and bytes. Knows nothing of what a file says.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.processes import is_first_process

_PREFIX = ".sequoia-opt-"  # of a file that is still being written


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, see `write_bytes`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically. Of several processes only the first writes.

    A pipe or a device is written to directly.

    Raises:
        SequoiaError: the file cannot be written; its old content is untouched.
    """
    path = Path(path)
    if not is_first_process():
        return
    try:
        if is_stream(path):
            path.write_bytes(content)
            return
        target = _replaceable_file(path)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise SequoiaError(f"{path}: cannot be written ({reason_of(error)})") from None


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """The path of a temporary file beside `path`, which takes its place when it is written.

    For what another library writes, or what is too large to be in memory. The folder is made.
    Every process writes: the last of several wins.

    Raises:
        OSError: the file cannot be written; an old one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Check before long work that `path` can be written, and make its folder.

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
        target = _replaceable_file(path)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except (OSError, ValueError) as error:
        raise SequoiaError(
            f"{path}: cannot be written ({reason_of(error)}); choose another with -o"
        ) from None


def is_stream(path: Path) -> bool:
    """Whether the path is a pipe or a device, which is written to rather than replaced."""
    is_device = Path("/dev") in Path(os.path.abspath(path)).parents
    return os.path.exists(path) and (is_device or not os.path.isfile(path))


def _replaceable_file(path: Path) -> Path:
    """The file that `path` names, with its folder made; a symbolic link is followed, so that
    the link itself survives.

    Raises:
        OSError: the path is invalid, its links form a loop, or the file is read-only: replacing
            it would succeed, but is as unwanted as writing to it.
    """
    with suppress(FileNotFoundError):
        os.stat(path)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
