"""Names that a file can have, and fingerprints that tell files and models apart."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from sequoia_opt.files.documents import read_bytes

FINGERPRINT = re.compile(r"([0-9a-f]{16})(?:-([0-9a-f]{16}))?")  # of a model
LONGEST_NAME = 220  # bytes: what file systems take, 255, with room for endings


def safe_name(name: str) -> str:
    """A model's or dataset's name as a part of a file name: no separators, no leading dots."""
    kept = "".join(c if c.isalnum() or c in "-._+" else "_" for c in name)
    return short_name(kept.lstrip(".") or "unnamed")


def short_name(stem: str) -> str:
    """A file's name without its ending, cut where no file system would take it; different ones
    stay different."""
    content = os.fsencode(stem)
    if len(content) <= LONGEST_NAME:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:8]
    start = content[: LONGEST_NAME - 1 - len(digest)].decode(errors="ignore")
    return f"{start}_{digest}"


def content_fingerprint(path: str | Path) -> str:
    """Hash of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def same_fingerprint(first: Any, second: Any) -> bool:
    """Whether two values are the same, models' fingerprints in them compared by what both have.

    A fingerprint is of a model's configuration and its weights' shapes, and since weights are
    sampled too, after a hyphen, of what they hold; files from before have the first part alone.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            same_fingerprint(first[key], second[key]) for key in first
        )
    if isinstance(first, str) and isinstance(second, str):
        parts = FINGERPRINT.fullmatch(first), FINGERPRINT.fullmatch(second)
        if parts[0] and parts[1]:
            ends = {part[2] for part in parts if part and part[2]}
            return parts[0][1] == parts[1][1] and len(ends) < 2
    return bool(first == second)
