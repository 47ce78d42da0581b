"""One writer at a time: a lock on an open file, released when its process ends."""

from __future__ import annotations

import errno
import os
import stat

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # errors that mean: another has the lock


def lock(descriptor: int, patient: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process has locked it.

    Pipes and devices are never locked. Where the operating system or the file system has no
    locks, nothing is locked and the result is True.

    Args:
        descriptor: of the file, open for writing.
        patient: wait until the other process releases the file.
    """
    if fcntl is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return True
    operation = fcntl.LOCK_EX if patient else fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        return error.errno not in HELD
    return True
