"""The memory that models and their buffers take, checked before it is allocated.

Without a check, a process that asks for too much is killed without a message on a CPU, and fails
halfway through a measurement on a GPU. Knows sizes. Knows nothing of what they are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sequoia_opt.errors import SequoiaError

GIGABYTE = 1e9


def free_bytes(device: torch.device) -> int | None:
    """Free memory on a device; None where the system does not say."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        index = torch.cuda.current_device() if device.index is None else device.index
        # Memory that torch holds unused can be allocated again, but for the pools of CUDA graphs.
        unused = sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in torch.cuda.memory_snapshot()
            if segment["device"] == index and segment.get("segment_pool_id", (0, 0)) == (0, 0)
        )
        return free + unused
    if device.type != "cpu":
        return None
    limits = [_available_bytes(), _bytes_left_in_group()]
    return min((limit for limit in limits if limit is not None), default=None)


def weight_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """Bytes of a model's weights in a dtype; None if they are quantised and so not known."""
    if getattr(config, "quantization_config", None):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def check_fits(needed: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse an allocation that is larger than the free memory.

    Args:
        needed: bytes.
        what: the subject of the message, in the plural.
        advice: the end of the message: how to need less.

    Raises:
        SequoiaError: names both sizes.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise SequoiaError(
            f"{what} take {needed / GIGABYTE:.1f} GB and {free / GIGABYTE:.1f} GB of {device} "
            f"memory are free; {advice}"
        )


def _available_bytes() -> int | None:
    """Memory that Linux estimates to be available without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None


def _bytes_left_in_group() -> int | None:
    """Memory that a container's limit leaves, page cache not counted; None if unlimited."""
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
