"""Names that a file can have, and fingerprints that tell files and models apart."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from sequoia_opt.files.reading import read_bytes

MODEL_FINGERPRINT = re.compile(r"([0-9a-f]{16})(?:-([0-9a-f]{16}))?")
LONGEST_NAME = 220  # bytes; file systems take 255, and endings need room


def safe_name(name: str) -> str:
    """A model's or dataset's name as a part of a file name: no separators, no leading dots."""
    characters = (c if c.isalnum() or c in "-._+" else "_" for c in name)
    return short_name("".join(characters).lstrip(".") or "unnamed")


def short_name(stem: str) -> str:
    """A file name without its ending, cut to `LONGEST_NAME` bytes.

    A name that is cut ends with a hash of the whole, so that different names stay different.
    """
    content = os.fsencode(stem)
    if len(content) <= LONGEST_NAME:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:8]
    start = content[: LONGEST_NAME - 1 - len(digest)].decode(errors="ignore")
    return f"{start}_{digest}"


def content_fingerprint(path: str | Path) -> str:
    """A hash of a file's content, 16 hexadecimal digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]


def same_fingerprint(first: Any, second: Any) -> bool:
    """Whether two values, or two mappings of values, are the same.

    Models' fingerprints are compared by the parts that both have. The first part is a hash of the
    configuration and the weights' shapes; the second, after a hyphen, is a hash of a sample of
    the weights, which older files lack.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            same_fingerprint(first[key], second[key]) for key in first
        )
    if isinstance(first, str) and isinstance(second, str):
        one, other = MODEL_FINGERPRINT.fullmatch(first), MODEL_FINGERPRINT.fullmatch(second)
        if one and other:
            weight_hashes = {part for part in (one[2], other[2]) if part}
            return one[1] == other[1] and len(weight_hashes) < 2
    return bool(first == second)
