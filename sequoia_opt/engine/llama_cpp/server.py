"""llama.cpp's own server in a process of its own: what people would use instead of this program.

Knows how a server is started and ended, and why one failed. What it is asked is in
`server_client`.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from sequoia_opt.engine.http_client import HttpClient, ServerGoneError
from sequoia_opt.engine.llama_cpp.server_client import Answer, ServerClient
from sequoia_opt.engine.llama_cpp.server_program import (
    HOST,
    INSTALL,
    ServerOptions,
    environment,
    program,
)
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.plan.sampling import Sampling

START_SECONDS = 600.0
POLL_SECONDS = 0.05
HEALTH_SECONDS = 10.0
ENDING_SECONDS = 1.0
ERROR = re.compile(r"(?i:error|fail)| E ")
CONSEQUENCE = re.compile(r"exiting due to|Failed to init server")
LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] ")
PORT_TAKEN = re.compile(r"bind|start HTTP|in use", re.IGNORECASE)


def _folded(text: object) -> str:
    return " ".join(str(text).split())


class LlamaServer:
    """A running server; a context manager that ends it.

    Attributes:
        options: what it runs.
        program: which program it is.
        client: what asks it.
    """

    def __init__(self, options: ServerOptions) -> None:
        """Start it, and wait until it answers.

        Raises:
            SequoiaError: there is none, it lacks the kind of speculation, or it does not start.
        """
        self.options, self.program = options, program()
        if options.kind not in self.program.speculations:
            raise SequoiaError(
                f"{self.program.name} {self.program.version}: has no speculation {options.kind}, "
                f"only {', '.join(sorted(self.program.speculations))}; install a newer one"
            )
        try:
            self._start()
        except SequoiaError:
            # Another process may have taken the port since it was found free.
            if not PORT_TAKEN.search(self._log_end()):
                raise
            self._start()

    def _start(self) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server
        port = free_port()
        address = HttpClient(f"http://{HOST}:{port}")
        self.client = ServerClient(self.program.name, address, self._failure)
        try:
            self._process = subprocess.Popen(
                self.program.command(self.options, port),
                stdin=subprocess.PIPE,  # the server ends with it, and so with this program
                stdout=self._log,
                stderr=self._log,
                env=environment(),
                start_new_session=True,  # so that it and what watches it are killed together
            )
        except OSError as error:
            raise SequoiaError(
                f"{self.program.name}: cannot be run ({one_line(error)[:160]}); {INSTALL}"
            ) from None
        atexit.register(self.close)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Wait until it is ready."""
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.client.ask("GET", "/health", timeout=HEALTH_SECONDS)[0] == http.client.OK:
                    return
            if time.monotonic() > deadline:
                raise SequoiaError(
                    f"{self.program.name}: not ready after {START_SECONDS:.0f} s with "
                    f"{self.options.target}; try a smaller model or context"
                )
            time.sleep(POLL_SECONDS)
        raise self._failure("does not start")

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """End it without waiting until it has ended."""
        # It keeps nothing that would have to be written, and may take seconds to end by itself.
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it."""
        try:
            self.kill()
            self._process.wait()
        finally:
            atexit.unregister(self.close)
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()

    def generate(self, prompt: Sequence[int], new_tokens: int, sampling: Sampling) -> Answer:
        """Decode a prompt, past end-of-text tokens.

        Raises:
            SequoiaError: it refuses the request, or has ended.
        """
        return self.client.generate(prompt, new_tokens, sampling)

    def _log_end(self, size: int = 4000) -> str:
        """The end of what it logged."""
        # The server writes at the file's position, which must stay where it is.
        file = self._log.fileno()
        start = max(0, os.fstat(file).st_size - size)
        return os.pread(file, size, start).decode(errors="replace")

    def _failure(self, what: str) -> ServerGoneError:
        """Why it is not there any more: what it logged, and how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may be about to end
            self._process.wait(ENDING_SECONDS)
        code = self._process.poll()
        ending = "" if code is None else f"; exit code {code}" if code >= 0 else f"; signal {-code}"
        why = _folded(last_error(self._log_end().splitlines()))[:200]
        return ServerGoneError(
            f"{self.program.name}: {what} with {self.options.target} ({why}{ending})"
        )


def last_error(lines: Sequence[str]) -> str:
    """The last error of a server's log, else its last line.

    Lines behind an error that are errors too only say that what depends on it failed as well.
    """
    lines = [line.strip() for line in lines if line.strip()]
    errors = [
        i for i, line in enumerate(lines) if ERROR.search(line) and not CONSEQUENCE.search(line)
    ]
    place = errors[-1] if errors else len(lines) - 1
    while place - 1 in errors:
        place -= 1
    return LOG_PREFIX.sub("", lines[place]) if lines else "it does not say why"


def free_port() -> int:
    """A port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
