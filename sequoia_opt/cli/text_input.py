"""Where `decode` and `chat` read texts from: the prompt, a file, or standard input.

Knows bytes, encodings and closed streams. Knows nothing of what becomes of a text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sequoia_opt import demo
from sequoia_opt.errors import SequoiaError, one_line

STANDARD_INPUT = "standard input"


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, the text of a file, or standard input for `-`; without any, the bundled prompts.

    Raises:
        SequoiaError: the file or standard input cannot be read, or is not UTF-8.
    """
    if file is not None:
        try:
            return [_decoded(file.read_bytes(), str(file))]
        except FileNotFoundError:
            raise SequoiaError(f"{file}: no such file") from None
        except (OSError, ValueError) as error:
            raise SequoiaError(f"{file}: cannot be read ({one_line(error)})") from None
    if prompt == "-":
        return [_decoded(_standard_input().read(), STANDARD_INPUT)]
    return demo.prompts() if prompt is None else [prompt]


def read_turns(prompt: str) -> Iterator[str]:
    """The lines of standard input that are not blank, without their ends.

    Args:
        prompt: shown on standard error before each line, if a person types them.

    Raises:
        SequoiaError: standard input is closed, or a line is not UTF-8.
    """
    from sequoia_opt.cli.output import err

    stream = _standard_input()
    for number in count(1):
        if sys.stdin.isatty():
            err.print(prompt, end="")
        try:
            line = stream.readline()
        except KeyboardInterrupt:  # Ctrl-C is a usual way to leave a conversation
            return
        if not line:
            return
        text = _decoded(line, f"{STANDARD_INPUT}: line {number}")
        if text.strip():
            yield text.removesuffix("\n").removesuffix("\r")


def _standard_input() -> Any:
    """Standard input as bytes, or as text where it has no bytes.

    Raises:
        SequoiaError: it is closed.
    """
    if sys.stdin is None:
        raise SequoiaError(f"{STANDARD_INPUT}: is closed; give the text with --prompt-file")
    return getattr(sys.stdin, "buffer", sys.stdin)


def _decoded(content: bytes | str, where: str) -> str:
    """A text without its byte order mark; its line ends stay as they are.

    Raises:
        SequoiaError: it is not UTF-8.
    """
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SequoiaError(
            f"{where}: is not UTF-8 ({error.reason} at byte {error.start + 1}); convert it"
        ) from None
