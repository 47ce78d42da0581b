"""How fast memory, a bus and a disk give bytes by themselves: what decoding is set beside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.torch.layer_stream import host_memory
from sequoia_opt.engine.torch.machine import queued_ms
from sequoia_opt.engine.torch.runner import Runner

COPIED = 2**30  # bytes, to see what the memory gives
COPIES = 9
PIECE = 2**23  # bytes of a disk's file that are read at once


def median_ms(work: Callable[[], object], device: torch.device) -> float:
    """Median time of some work on a device."""
    if device.type == "cuda":
        return float(np.median([queued_ms(work, device) for _ in range(COPIES)]))
    times = []
    for _ in range(COPIES):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def memory_rate(device: torch.device, size: int = COPIED) -> float:
    """GB/s that a device's memory gives to a copy, bytes read and bytes written."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return 2 * size / median_ms(lambda: copy.copy_(source), device) / 1e6


def bus_rate(size: int) -> float:
    """GB/s at which so many bytes can be copied from pinned memory to the GPU."""
    device = torch.device("cuda")
    source = host_memory(size, device)
    copy = torch.empty(size, dtype=torch.uint8, device=device)
    return size / median_ms(lambda: copy.copy_(source, non_blocking=True), device) / 1e6


def disk_rate(folder: Path) -> float:
    """GB/s at which all of a model's files can be read, one after another, from the disk itself."""
    piece, total = bytearray(PIECE), 0
    started = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := stream.readinto(piece):
                total += count
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total / (time.perf_counter() - started) / 1e9


def weights_read(runner: Runner) -> int:
    """Bytes of weights that a forward pass of one token reads: all but the embedding table, of
    which it takes one row, unless the head is tied to it."""
    model: Any = runner.model
    table = model.get_input_embeddings().weight
    tied = table is model.get_output_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights if tied else weights - table.numel() * table.element_size()
