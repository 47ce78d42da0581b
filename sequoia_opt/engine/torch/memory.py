"""What models and their buffers take, said before it is taken.

A process that asks for more than there is gets killed without a word on a CPU, and half-way
through a measurement on a GPU. Knows sizes, not what they are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sequoia_opt.errors import SequoiaError

GIGABYTE = 1e9


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        index = torch.cuda.current_device() if device.index is None else device.index
        # What graphs hold is theirs alone.
        held = sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == index and segment.get("segment_pool_id", (0, 0)) == (0, 0)
        )
        return free + held
    if device.type != "cpu":
        return None
    limits = [_available(), _left_of_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def weight_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """What a model's weights take in a dtype; None for quantised ones, which say it nowhere."""
    if getattr(config, "quantization_config", None):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def check_fits(needed: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse what is larger than the memory that is left.

    Raises:
        SequoiaError: with both sizes.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise SequoiaError(
            f"{what} take {needed / GIGABYTE:.1f} GB and {free / GIGABYTE:.1f} GB of {device} "
            f"memory are free; {advice}"
        )


def _available() -> int | None:
    """What Linux thinks can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _left_of_group() -> int | None:
    """What a container's limit leaves, page cache not counted."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (group / f"memory.{name}").read_text().strip() for name in ("max", "current")
        )
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - int(used) + int(statistics.get("file", 0)))
