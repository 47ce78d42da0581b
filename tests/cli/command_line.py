"""A command line and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SMALL = ["--tokens", "1,2,4,8,16", "--contexts", "16,64", "--repeats", "5"]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def write(name: str, text: str) -> Path:
    """A file in the working folder."""
    path = Path(name)
    path.write_text(text)
    return path
