"""Files written in one piece: the old content or the new one, never a part.

Knows paths and bytes; nothing of what a file says.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.processes import is_first_process

_PREFIX = ".sequoia-opt-"  # of a file that is not whole yet


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


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
