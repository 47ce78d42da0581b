"""The standard streams and the signals that end a program.

What a terminal cannot take, or a closed pipe, costs at most what would have been shown, never a
result. Knows nothing of commands, and loads nothing that takes time.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from sequoia_opt.errors import SequoiaError

STREAMS = ("standard input", "standard output", "standard error")
# What is not shown as it is: control characters, which a terminal obeys, and those that turn the
# direction of what follows; half characters, which cannot be written.
_UNSHOWN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_HIDDEN = re.compile(f"[{_UNSHOWN}]")
# One character for each, so that tables stay in line.
PLAIN = str.maketrans(
    {
        **dict.fromkeys("–─━", "-"),
        **dict.fromkeys("│┃", "|"),
        **dict.fromkeys("├└", "+"),
        **dict.fromkeys("█▉▊▋▌", "#"),
        **dict.fromkeys("▍▎▏", ":"),
        **dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*"),  # of which a spinner is made
        "×": "x", "…": ".", "µ": "u", "░": ".", "·": ".", "•": "*", "²": "2",
        "≤": "<", "≥": ">",
    }
)  # fmt: skip


def printable(text: str) -> str:
    """Text in which nothing is left that a terminal would obey; it is spelt out instead."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def json_printable(text: str) -> str:
    """The same JSON document in which nothing is left that a terminal would obey."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def is_unicode(encoding: str | None) -> bool:
    """Whether every character can be written in this encoding."""
    return (encoding or "").lower().replace("_", "-").startswith("utf")


def encodable(text: str, encoding: str) -> str:
    """Text that the encoding has: lines and signs as ASCII draws them, other characters spelt
    out."""
    kept = []
    for character in text:
        for attempt in (character, character.translate(PLAIN)):
            with suppress(UnicodeEncodeError):
                attempt.encode(encoding)
                kept.append(attempt)
                break
        else:
            kept.append(ascii(character)[1:-1])
    return "".join(kept)


class Output:
    """A text stream that takes every character, and says in a line when it takes nothing.

    Raises on writing:
        SequoiaError: the stream is full or closed; never where it is one that may be lost.
        BrokenPipeError: the reader has gone.
    """

    def __init__(self, stream: Any, name: str, may_be_lost: bool = False) -> None:
        self._stream, self._name, self._may_be_lost = stream, name, may_be_lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, as far as the stream's encoding has it."""
        with self._told():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(encodable(text, self._stream.encoding or "ascii"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts one after the other."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hand on what was written."""
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: of a stream that Python has closed
            if self._may_be_lost:
                drop(self._stream)
                return
            if isinstance(error, BrokenPipeError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise SequoiaError(f"{self._name}: cannot be written ({reason})") from None


class Input:
    """A stream to read from that says in a line when there is nothing to read.

    Raises on reading:
        SequoiaError: the stream is closed, or no file.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Input:
        """The same stream's bytes."""
        return Input(self._stream.buffer, self._name)

    def read(self, size: int = -1) -> Any:
        """Read all that is there, or at most so many characters."""
        with self._told():
            return self._stream.read(size)

    def readline(self) -> Any:
        """The next line."""
        with self._told():
            return self._stream.readline()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EBADF:
                raise SequoiaError(
                    f"{self._name}: is closed; give the text with --prompt-file"
                ) from None
            reason = error.strerror or error
            raise SequoiaError(f"{self._name}: cannot be read ({reason})") from None


@contextmanager
def guarded_streams() -> Iterator[None]:
    """The standard streams as `Input` and `Output`, also where they are closed."""
    _open_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = Input(sys.stdin, STREAMS[0])
    told = Output(sys.stderr, STREAMS[2], may_be_lost=True)
    sys.stdout, sys.stderr = Output(sys.stdout, STREAMS[1]), told
    try:
        yield
    finally:
        told.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give the standard streams that are closed a descriptor that fails as they do.

    The next file that is opened would take its place, and be written to by whoever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # The null device, the wrong way round: whoever reads or writes is told that they cannot.
        null = os.open(os.devnull, os.O_WRONLY if number == 0 else os.O_RDONLY)
        if null != number and _is_closed(number):
            os.dup2(null, number)
            os.close(null)
            null = number
        setattr(sys, name, os.fdopen(null, "w" if number else "r", closefd=False))


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def flush_output() -> None:
    """Hand on what was printed.

    Raises:
        SequoiaError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)
    except SequoiaError:
        drop(sys.stdout)
        raise


def drop(stream: Any) -> None:
    """Forget what is left to write to a stream, and what follows: nobody takes it, and the
    interpreter would try again at its end."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class Terminated(BaseException):
    """The program was asked to end (SIGTERM)."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def ending_signals() -> Iterator[None]:
    """Have SIGINT and SIGTERM end what is under way in order; not where they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in wanted.items():
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            if handler_before is not None:
                signal.signal(number, handler_before)


def end_by(number: signal.Signals) -> NoReturn:
    """End as a program does that a signal ended: shells stop their loops on that."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, SequoiaError):
            stream.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(128 + number)
