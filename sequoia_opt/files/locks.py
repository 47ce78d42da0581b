"""One writer at a time: a lock on an open file, which ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import stat

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def lock(descriptor: int, patient: bool = False) -> bool:
    """Hold a file until it is closed; whether no other process does.

    Pipes and devices are everybody's. Where the system or the file system has no locks, nothing
    is held and the answer is yes.

    Args:
        descriptor: of the file, open for writing.
        patient: wait for another process to let go.
    """
    if fcntl is None or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
    except OSError as error:
        return error.errno not in HELD
    return True
