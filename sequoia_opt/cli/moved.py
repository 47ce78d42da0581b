"""Command lines of older versions, each answered with the command line that replaces it.

A mode that was an option has become a command. Knows the old spellings and the new ones, and
nothing of what the commands do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from shlex import join

import typer


@dataclass(frozen=True)
class Moved:
    """An option that chose a mode of a command, and the command that the mode has become.

    Attributes:
        command: the old command.
        option: the option that chose the mode.
        now: the new command.
        becomes_argument: the option's value becomes the new command's first argument.
        stays: the new command has the option too.
        unless: options with which the option has another meaning, which has not moved.
    """

    command: str
    option: str
    now: str
    becomes_argument: bool = False
    stays: bool = False
    unless: tuple[str, ...] = ()

    def applies_to(self, arguments: Sequence[str]) -> bool:
        """Whether a command line is in this old spelling."""
        if list(arguments[:1]) != [self.command]:
            return False
        options = {argument.partition("=")[0] for argument in _before_dashes(arguments)}
        return self.option in options and not options & set(self.unless)

    def rewritten(self, arguments: Sequence[str]) -> list[str]:
        """The same command line in the new spelling."""
        rest = list(arguments[1:])
        if self.stays:
            return [self.now, *rest]
        index = next(i for i, text in enumerate(rest) if text.partition("=")[0] == self.option)
        _, equals, value = rest.pop(index).partition("=")
        if not self.becomes_argument:
            return [self.now, *rest]
        if not equals:
            value = rest.pop(index) if index < len(rest) else ""
        return [self.now, *([value] if value else []), *rest]


# The first entry that applies answers.
MOVED = (
    Moved("solve", "--all", "solve-all"),
    Moved("solve", "--check", "solve-all", stays=True),
    Moved("solve", "--sweep", "sweep", becomes_argument=True),
    Moved("decode", "--prompts", "complete", becomes_argument=True),
    Moved("decode", "--chat", "chat", unless=("--prompt", "--prompt-file")),
    Moved("bench", "--sizes", "bench-sizes", stays=True),
    Moved("bench", "--calibrate", "calibrate"),
)


def refuse_old_spelling(arguments: Sequence[str]) -> None:
    """Refuse a command line of an older version.

    Args:
        arguments: the command and its options, without the program's name.

    Raises:
        typer.TyperException: with the command line that replaces it.
    """
    for moved in MOVED:
        if moved.applies_to(arguments):
            command = join(["sequoia-opt", *moved.rewritten(arguments)])
            raise typer.TyperException(
                f"{moved.command} {moved.option}: is now a command; run `{command}`"
            )


def _before_dashes(arguments: Sequence[str]) -> list[str]:
    """The part of a command line in which options are read: what stands before `--`."""
    words = list(arguments)
    return words[: words.index("--")] if "--" in words else words
