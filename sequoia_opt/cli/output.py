"""What every command prints with: two consoles, progress, notes, tables and bars.

Knows terminals and pipes. Knows nothing of the output's content, and loads no torch.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log10
from pathlib import Path
from typing import Any

from rich import console as rich_console
from rich.table import Table
from rich.text import Text

from sequoia_opt.cli.terminal import printable

MINUTE = 60  # seconds
FIRST_NOTE = 5  # seconds after which a pipe is told about long work; the pause then doubles
PIPE_WIDTH = 1000  # characters in a table's line where no terminal limits it


class Console(rich_console.Console):
    """Prints names and texts from files literally: no markup, control characters spelt out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with its control characters spelt out."""
        return super().render_str(printable(text), **options)


out = Console(soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, soft_wrap=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how far long work is; yields a function of (done, total).

    A terminal shows a bar; a pipe gets a line from time to time.
    """
    if not err.is_terminal:
        with waiting(label):
            yield _occasional_notes(label)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    display = Progress(*columns, console=err, transient=True)
    with display:
        task = display.add_task(printable(label), total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _occasional_notes(label: str) -> Callable[[int, int], None]:
    """A function of (done, total) that notes from time to time how much is left."""
    began, last_note, pause = time.monotonic(), time.monotonic(), 2 * FIRST_NOTE
    first, last = -1, 0  # a resumed run starts with parts that took no time

    def advance(done: int, total: int) -> None:
        nonlocal began, last_note, pause, first, last
        now = time.monotonic()
        if first < 0 or done < last:  # the next phase counts from the start again
            began, first = now, done
        last = done
        if now - last_note >= pause and first < done < total:
            rest = (now - began) * (total - done) / (done - first)
            left = f"{rest / MINUTE:.0f} min" if rest >= MINUTE else f"{rest:.0f} s"
            note(f"{label}: {done} of {total}, about {left} left")
            last_note, pause = now, min(2 * pause, MINUTE)

    return advance


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Say on standard error what the program is doing, for as long as it takes.

    A terminal shows a spinner; a pipe gets one line, and only if the work takes a while.
    """
    if err.is_terminal:
        with err.status(Text(printable(f"{label} …"))):
            yield
        return
    timer = threading.Timer(FIRST_NOTE, note, [f"{label} …"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def note(message: str) -> None:
    """Print a line on standard error."""
    err.print(message)


def plain(text: str, end: str = "\n") -> None:
    """Print a text for another program: unchanged, unless standard output is a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end=end)


def written(path: Path) -> None:
    """Say which file was written."""
    note(f"wrote {path}")


def show(table: Table) -> None:
    """Print a table on standard output; a pipe gets every column at full width."""
    (out if out.is_terminal else Console(width=PIPE_WIDTH)).print(table)


def bar(share: float, length: int) -> str:
    """A bar of at most `length` characters, drawn in eighths of a character."""
    eighths = round(8 * length * min(max(share, 0.0), 1.0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def digits(number: float) -> str:
    """A number to three digits: at most two after the point, and all before it."""
    return f"{number:.{max(0, 2 - int(log10(max(number, 1))))}f}"


def counted(count: int, noun: str) -> str:
    """A number and its noun, as "1 prompt" or "8 prompts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
