"""A text that is shown while it is decoded."""

from __future__ import annotations

from typing import TextIO

from sequoia_opt.cli.terminal import printable


class Typewriter:
    """Writes a growing text to a stream."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`, or nowhere if it is None."""
        self._stream = stream
        self._written = 0  # characters

    def write(self, text: str) -> None:
        """Write the part of `text` that has not been written yet."""
        if self._stream is None:
            return
        new = text[self._written :]
        if self._stream.isatty():  # a model's text must not control the terminal
            new = printable(new.replace("\r\n", "\n"))
        self._stream.write(new)
        self._stream.flush()
        self._written = max(self._written, len(text))
