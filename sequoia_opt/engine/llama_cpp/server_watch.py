"""Runs a program until standard input ends: `server_watch.py PROGRAM ARGUMENT…`.

Standard input is a pipe from the process that wants the program, so it ends when that process
does, however it dies; llama-server alone would run on. Knows nothing of what it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main() -> None:
    """Run the program, and end as it does."""
    try:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    except OSError as error:
        sys.exit(f"error: {error}")
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    if code < 0:  # it died of a signal, and so does this
        with suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    process.kill()


if __name__ == "__main__":
    main()
