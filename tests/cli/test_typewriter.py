from __future__ import annotations

from io import StringIO

from sequoia_opt.cli.typewriter import Typewriter


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_growing_text_is_written_once() -> None:
    stream = StringIO()
    typewriter = Typewriter(stream)
    for text in ("a", "a\x1b[31m", "a\x1b", "a\x1b[31mb\r\n"):  # a stop string shortens a text
        typewriter.write(text)
    assert stream.getvalue() == "a\x1b[31mb\r\n"


def test_a_terminal_obeys_no_text() -> None:
    stream = Terminal()
    Typewriter(stream).write("a\x1b[31m\r\n")
    assert stream.getvalue() == "a\\x1b[31m\n"


def test_without_a_stream_nothing_is_written() -> None:
    Typewriter(None).write("a")
