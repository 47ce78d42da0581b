"""The standard streams, and the signals that end the program.

A terminal that cannot show a character, or a closed pipe, loses output at most, never a result.
Knows nothing of commands, and imports nothing slow.
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
# Characters that are spelt out: control characters, which a terminal obeys; characters that change
# the direction of the text after them; surrogates, which cannot be encoded.
_UNSHOWN = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_HIDDEN = re.compile(f"[{_UNSHOWN}]")
# ASCII replacements of one character each, so that tables stay aligned.
PLAIN = str.maketrans(
    {
        **dict.fromkeys("–─━", "-"),
        **dict.fromkeys("│┃", "|"),
        **dict.fromkeys("├└", "+"),
        **dict.fromkeys("█▉▊▋▌", "#"),
        **dict.fromkeys("▍▎▏", ":"),
        **dict.fromkeys(map(chr, range(0x2800, 0x2900)), "*"),  # a spinner's dots
        "×": "x", "…": ".", "µ": "u", "░": ".", "·": ".", "•": "*", "²": "2",
        "≤": "<", "≥": ">",
    }
)  # fmt: skip


def printable(text: str) -> str:
    """The text with its control characters spelt out, so that a terminal obeys none."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def json_printable(text: str) -> str:
    """The same JSON document with its control characters written as escapes."""
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_unicode(encoding: str | None) -> bool:
    """Whether an encoding has every character."""
    return (encoding or "").lower().replace("_", "-").startswith("utf")


def encodable(text: str, encoding: str) -> str:
    """The text in characters that an encoding has.

    Lines and signs become ASCII; other characters that it lacks are spelt out.
    """
    characters = []
    for character in text:
        for attempt in (character, character.translate(PLAIN)):
            with suppress(UnicodeEncodeError):
                attempt.encode(encoding)
                characters.append(attempt)
                break
        else:
            characters.append(ascii(character)[1:-1])
    return "".join(characters)


class Output:
    """A text stream that takes every character, and raises a one-line error when it fails.

    Raises on writing:
        SequoiaError: the stream is full or closed, unless its content may be lost.
        BrokenPipeError: the reader has gone.
    """

    def __init__(self, stream: Any, name: str, may_be_lost: bool = False) -> None:
        """Wrap a stream.

        Args:
            name: for messages.
            may_be_lost: drop what cannot be written, without an error.
        """
        self._stream, self._name, self._may_be_lost = stream, name, may_be_lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text in characters that the stream's encoding has."""
        with self._clear_errors():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(encodable(text, self._stream.encoding or "ascii"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream."""
        with self._clear_errors():
            self._stream.flush()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: Python has closed the stream
            if self._may_be_lost:
                drop(self._stream)
                return
            if isinstance(error, BrokenPipeError):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            raise SequoiaError(f"{self._name}: cannot be written ({reason})") from None


class Input:
    """A stream to read from that raises a one-line error when it fails.

    Raises on reading:
        SequoiaError: the stream is closed or cannot be read.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def buffer(self) -> Input:
        """The stream as bytes."""
        return Input(self._stream.buffer, self._name)

    def read(self, size: int = -1) -> Any:
        """Read everything, or at most `size` characters."""
        with self._clear_errors():
            return self._stream.read(size)

    def readline(self) -> Any:
        """Read the next line."""
        with self._clear_errors():
            return self._stream.readline()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
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
    """Replace the standard streams by `Input` and `Output`, even if they are closed."""
    _open_closed()
    originals = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = Input(sys.stdin, STREAMS[0])
    errors = Output(sys.stderr, STREAMS[2], may_be_lost=True)
    sys.stdout, sys.stderr = Output(sys.stdout, STREAMS[1]), errors
    try:
        yield
    finally:
        errors.flush()
        sys.stdin, sys.stdout, sys.stderr = originals


def _open_closed() -> None:
    """Give each closed standard stream a descriptor that fails like a closed one.

    Otherwise the next file that is opened would get its number, and prints would go to that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        # The null device opened the wrong way round: every read or write fails.
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
    """Flush standard output.

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
    """Discard what a stream has buffered, and whatever is written to it later.

    Nobody reads it, and the interpreter would otherwise try to write it again when it exits.
    """
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()


class Terminated(BaseException):
    """The program received SIGTERM."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def ending_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into exceptions, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    originals = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if originals[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, original in originals.items():
            if original is not None:
                signal.signal(number, original)


def end_by(number: signal.Signals) -> NoReturn:
    """End the process by a signal, so that a shell stops its loops too."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, SequoiaError):
            stream.flush()
    if os.name == "posix":
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(128 + number)
