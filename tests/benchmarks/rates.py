"""Bandwidths of memory, bus and disk, to compare decoding with."""

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

COPIED_BYTES = 2**30
COPIES = 9
READ_BYTES = 2**23  # bytes of a file that are read at once


def median_ms(work: Callable[[], object], device: torch.device) -> float:
    """The median time of `work` on a device."""
    if device.type == "cuda":
        return float(np.median([queued_ms(work, device) for _ in range(COPIES)]))
    times = []
    for _ in range(COPIES):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def memory_rate(device: torch.device, size: int = COPIED_BYTES) -> float:
    """The bandwidth of a copy within a device's memory in GB/s, reads and writes counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    return 2 * size / median_ms(lambda: copy.copy_(source), device) / 1e6


def bus_rate(size: int) -> float:
    """The bandwidth of copying `size` bytes from pinned host memory to the GPU, in GB/s."""
    device = torch.device("cuda")
    source = host_memory(size, device)
    copy = torch.empty(size, dtype=torch.uint8, device=device)
    return size / median_ms(lambda: copy.copy_(source, non_blocking=True), device) / 1e6


def disk_rate(folder: Path) -> float:
    """The bandwidth of reading a model's files from the disk, past the page cache, in GB/s."""
    buffer, total = bytearray(READ_BYTES), 0
    started = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := stream.readinto(buffer):
                total += count
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total / (time.perf_counter() - started) / 1e9


def weights_read(runner: Runner) -> int:
    """The bytes of weights that a forward pass of one token reads.

    Of the embedding table it reads one row, unless the head is tied to the table and reads all.
    """
    model: Any = runner.model
    table = model.get_input_embeddings().weight
    tied = table is model.get_output_embeddings().weight
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights if tied else weights - table.numel() * table.element_size()
