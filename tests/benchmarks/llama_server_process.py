"""A server of llama.cpp in a process, for the tests and the benchmark of `check`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sequoia_opt.engine.llama_cpp.server import free_port
from sequoia_opt.engine.llama_cpp.server_program import HOST, ServerOptions, environment, program
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.server import Server, connect

TIMEOUT = 120.0
POLL_SECONDS = 0.05


@contextmanager
def llama_server(options: ServerOptions, extra: Sequence[str] = ()) -> Iterator[Server]:
    """A running server, as `check` asks it.

    Args:
        extra: further options of a native server, which the wheel does not take.
    """
    port = free_port()
    process = subprocess.Popen(
        [*program().command(options, port), *extra],
        stdin=subprocess.PIPE,  # the server ends with it, and so with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield _answering(f"{HOST}:{port}", process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and what watches it
        process.communicate()


def _answering(url: str, process: subprocess.Popen[bytes]) -> Server:
    """The server as soon as it answers."""
    while True:
        try:
            return connect(url, None, None, TIMEOUT)
        except SequoiaError:
            if process.poll() is not None:
                raise
            time.sleep(POLL_SECONDS)
