"""Which of several processes this is, according to torchrun's environment variables."""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Whether torchrun has started this process together with others."""
    return "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def is_first_process() -> bool:
    """Whether this is the process that prints and writes files."""
    return not is_one_of_several() or os.environ.get("RANK", "0") == "0"
