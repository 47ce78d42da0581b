"""The processors that this process may run on, and how many of them compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def processors() -> list[int]:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def one_left_free() -> Iterator[None]:
    """Compute with one thread less, if every processor would have one.

    For a thread that reads meanwhile. Threads that compute wait for one another: while one of
    them is kept off its processor all of them are, and the reader is in turn. On two processors
    a forward of 8 tokens that reads its layers takes 2.3 s with both, 1.4 s with one.
    """
    threads = torch.get_num_threads()
    fewer = threads - 1 if threads == len(processors()) else threads
    torch.set_num_threads(max(1, fewer))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
